"""What scores need of a network and its train set, and whether it is there; shapes only."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ood_jax.features import forward_of
from ood_jax.models.heads import CLASSIFIERS, NORMALISED
from ood_jax.types import LastLayer, Net, Outputs, PyTree, Scorer

MISSING = {  # what a score may need beside features, and what to do where it is not there
    "labels": "labels of the train set: give a data.train that has them",
    "logits": "logits: a network with head.name = dino, linear, or projection with outputs",
    "last_layer": "a linear last layer: head.name = dino, linear, or projection with outputs",
    "second_logits": "a second classifier on the same features (head.second_outputs)",
    "projections": "projections: a network with head.name = dino or projection",
}


NORMS = {"embedding", "norms"}  # what scores read norms from


class Network(NamedTuple):
    """shapes: (params, stats), or their shapes as `jax.eval_shape` gives them."""

    config: ConfigDict
    net: Net
    shapes: Any


def check_feature(network: Network) -> None:
    """Refuses a score.feature that is none.

    Raises:
      ValueError: naming what the network has.
    """
    have = _available(_outputs(network))
    allowed = [name for name in ("features", "projections", "logits") if name in have]
    feature = network.config.score.feature
    if feature not in allowed:
        raise ValueError(f"score.feature = {feature!r}: this network has {', '.join(allowed)}")


def lacking(network: Network, scorer: Scorer, labelled: bool) -> str | None:
    """What the scorer needs and the run does not have, with a remedy; None = nothing."""
    outputs = _outputs(network)
    have = set(_available(outputs))
    have |= {"labels"} if labelled else set()
    have |= {"last_layer"} if network.net.last_layer is not None else set()
    if network.config.head.name in NORMALISED and NORMS & set(scorer.needs):
        return (
            f"projections that are not normalised: head.name = {network.config.head.name} makes"
            " all norms 1"
        )
    first, told = outputs.logits, outputs.second_logits
    compared = "second_logits" in scorer.needs
    if compared and first is not None and told is not None and told.shape != first.shape:
        return (
            f"two classifiers of the same classes: head.second_outputs = {told.shape[-1]} tells"
            f" something else than head.outputs = {first.shape[-1]}"
        )
    shifts = network.config.score.shifts
    if "shift_logits" in scorer.needs and told is not None and 1 < shifts != told.shape[-1]:
        return (
            f"as many shifts as the network's classifier tells apart: score.shifts = {shifts}; use"
            f" --config.score.shifts={told.shape[-1]}, or 1"
        )
    if scorer.extra is not None:
        try:
            have |= _extra(network, scorer).keys()
        except ValueError as error:
            return str(error)
    for need in scorer.needs:
        if need not in have:
            return MISSING.get(need, f"{need}, which this network does not have")
    return None


def fields(network: Network, scorers: Iterable[Scorer]) -> tuple[str, ...]:
    """The fields of Outputs that the scorers, kNN accuracy and accuracy read."""
    config, net, shapes = network
    have = _available(_outputs(network))
    wanted = {"features", config.score.feature, *(need for s in scorers for need in s.needs)}
    if "last_layer" in wanted and net.last_layer is not None:
        wanted |= {"logits", _reads(net.last_layer, shapes[0])}
    if config.head.name in CLASSIFIERS:
        wanted.add("logits")
    return tuple(name for name in have if name in wanted)


def _available(outputs: Outputs) -> list[str]:
    return [name for name, value in vars(outputs).items() if value is not None and name != "stages"]


def _outputs(network: Network) -> Outputs:
    size = network.config.model.image_size
    return jax.eval_shape(
        lambda params, stats, x: network.net.apply(params, stats, x, train=False)[0],
        *network.shapes,
        jax.ShapeDtypeStruct((1, size, size, 3), "float32"),
    )


def _extra(network: Network, scorer: Scorer) -> dict[str, Any]:
    """Shapes of what the scorer's Extra makes of one image."""
    config, net, shapes = network
    compute = scorer.extra.compute  # type: ignore[union-attr]

    def run(params: PyTree, stats: PyTree, images: Any, index: Any) -> dict[str, Any]:
        return compute(forward_of(net, params, stats, config), images, index)

    side = config.data.size
    image = jax.ShapeDtypeStruct((1, side, side, 3), "uint8")
    return jax.eval_shape(run, *shapes, image, jax.ShapeDtypeStruct((1,), "int32"))


def _reads(last_layer: Any, params: PyTree) -> str:
    """The field of Outputs that the inputs of the network's last layer are."""
    found: list[LastLayer] = []
    jax.eval_shape(lambda p: found.append(last_layer(p)), params)
    return found[0].reads
