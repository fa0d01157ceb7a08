"""A fitted detector as one StableHLO file, which needs jax and nothing else to run.

    exported = jax.export.deserialize(open("detector.stablehlo", "rb").read())
    score, ood = exported.call(images)      # uint8 [N, S, S, 3] -> float32 [N], bool [N]

N is free; S is `exported.in_avals[0].shape[1]`. Weights, the fitted score with its bank, and the
calibrated threshold are inside.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epath
from jax import export as jax_export

from ood_jax.atomic import replaced
from ood_jax.detector import Detector
from ood_jax.features import as_features, computed, forward_of
from ood_jax.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")


def export(detector: Detector, path: epath.PathLike, platforms: tuple[str, ...] = PLATFORMS) -> int:
    """Writes the detector to `path`; returns the bytes written.

    Raises:
      ValueError: the place cannot be written; the score is of NumPy, which cannot be traced.
    """
    size = detector.size
    (batch,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    refused = ValueError(
        f"scorer {detector.name} cannot be exported: give it a Scorer.score in jax.numpy"
    )
    if not callable(detector.scorer.score):  # a user's own that only streams
        raise refused
    try:
        exported = jax_export.export(jax.jit(_scores(detector)), platforms=platforms)(images)
    except jax.errors.TracerArrayConversionError:
        raise refused from None
    data = exported.serialize()
    with replaced(path) as fresh:
        fresh.write_bytes(data)
    return len(data)


def _scores(detector: Detector) -> Callable[[Array], tuple[Array, Array]]:
    """uint8 [N, S, S, 3] -> (scores float32 [N], are they above the threshold? bool [N])."""
    network = detector.network
    params, stats, state = jax.tree.map(
        jnp.asarray, (network.params, network.stats, detector.state)
    )
    forward = forward_of(network.net, params, stats, network.config)

    def scores(images: Array) -> tuple[Array, Array]:
        index = jnp.arange(images.shape[0], dtype=jnp.int32)
        found = computed(forward, images, index, network.fields, network.extras)
        score = detector.scorer.score(state, as_features(found))
        return score, score > detector.threshold

    return scores
