"""What a trained network is held against: raw pixels, and itself before its first step."""

from collections.abc import Iterator

from ood_jax import features, models, scorers
from ood_jax.kept import Network
from ood_jax.types import Scorer

OF_PIXELS = {"features", "labels"}  # all that raw pixels have


def networks(network: Network, name: str, scorer: Scorer) -> Iterator[tuple[Network, Scorer]]:
    """The networks that `score.baselines` names, and the scorer `name` as it judges each.

    network: the trained one, judged by `scorer`. A suffix says which is which. Pixels are left out
    where the score needs more than features.
    """
    for baseline in network.config.score.baselines:
        if baseline == "untrained":
            params, stats = models.init_params(network.net, network.config)
            extras = () if scorer.extra is None else (scorer.extra,)  # not those of other scorers
            yield (
                network._replace(params=params, stats=stats, extras=extras, suffix="@untrained"),
                scorer,
            )
            continue
        pixels = _pixels(network)
        theirs = scorers.build(name, pixels.config.score, network.mesh)
        if set(theirs.needs) <= OF_PIXELS and theirs.extra is None:
            yield pixels, theirs


def _pixels(network: Network) -> Network:
    config = network.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.image_size = config.data.size
        config.score.feature = "features"
    # Not kept: pixels are as fast to read from the set as from a far larger file of float32.
    return Network(
        config, network.mesh, features.pixels_net(), {}, {}, ("features",), suffix="@pixels"
    )
