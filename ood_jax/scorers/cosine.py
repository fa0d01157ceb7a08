"""What every score by cosine shares: which feature is read, checks, unit vectors."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.types import Array, Features

EPS = 1e-12  # least norm that is divided by: a zero vector has cosine 0 to everything


def pick(features: Features, field: str) -> Array:
    """The field of Features that `config.score.feature` names.

    Raises:
      ValueError: the network does not have it.
    """
    values = getattr(features, field, None) if field in Features._fields else None
    if values is None:
        have = [
            f for f in ("features", "projections", "logits") if getattr(features, f) is not None
        ]
        raise ValueError(f"score.feature = {field!r}: this network has {', '.join(have)}")
    return values


def check_features(values: Array, name: str, width: int | None = None) -> np.ndarray:
    """Features as float32 [N, D] on the host, not copied where they are that; refused if broken.

    Raises:
      ValueError: not [N, D], no rows, another width than `width`, or values that are no numbers or
        not finite.
    """
    shape = list(np.shape(values))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} features of shape {shape}: give one row or more, as [N, D]")
    if width not in (None, shape[1]):
        raise ValueError(f"{name} features are {shape[1]} wide, the bank's {width}: same network?")
    held = np.asarray(values)
    if held.dtype.kind in "cOSUMm" or issubclass(held.dtype.type, np.void):
        raise ValueError(f"{name} features are {held.dtype}: give numbers, such as float32")
    with np.errstate(over="ignore"):  # what is too large for float32 is told of below
        rows = np.asarray(held, np.float32)
    finite = np.isfinite(squared_norms(rows))
    if not finite.all():
        broken = np.flatnonzero(~finite)
        raise ValueError(
            f"{len(broken)} of {shape[0]} {name} features are not finite, the first in row"
            f" {broken[0]}: the network diverged, or these images are broken"
        )
    return rows


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """float32 [N, D] -> float64 [N], where no finite row overflows; without a second [N, D]."""
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)


def check_numbers(temperature: float, block: int) -> None:
    """Refuses what makes no sense.

    Raises:
      ValueError: a temperature that is not above 0 or not finite, a block below 1.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: use a number above 0")
    if block < 1:
        raise ValueError(f"score.block = {block}: use 1 or more")


@jax.jit
def unit(vectors: Array) -> jax.Array:
    """[N, D] -> float32 [N, D] of norm 1; a zero vector stays zero."""
    vectors = jnp.asarray(vectors, jnp.float32)
    norms = jnp.sqrt(jnp.sum(vectors * vectors, axis=1, keepdims=True))
    return vectors / jnp.maximum(norms, EPS)
