"""What every score by cosine shares: checks, unit vectors, blocks of the bank and of the tests."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ood_jax.types import Array, Features

TEST_BLOCK = 1024  # test rows compared at once
TEST_UNIT = 128  # test blocks are filled up to a multiple, so that few shapes are compiled
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


def check_features(values: Array, name: str, width: int | None = None) -> None:
    """Refuses features [N, D] that no cosine can be taken of.

    Raises:
      ValueError: not [N, D], no rows, another width than `width`, or values that are not finite.
    """
    shape = list(np.shape(values))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} features of shape {shape}: give one row or more, as [N, D]")
    if width not in (None, shape[1]):
        raise ValueError(f"{name} features are {shape[1]} wide, the bank's {width}: same network?")
    finite = np.isfinite(np.asarray(values)).all(axis=1)
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise ValueError(
            f"{len(rows)} of {shape[0]} {name} features are not finite, the first in row {rows[0]}:"
            " the network diverged, or these images are broken"
        )


def check_pair(
    bank: Array, test: Array, temperature: float, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks everything that a comparison of two sets of features needs; both as NumPy.

    Raises:
      ValueError: as `check_features` and `check_numbers`.
    """
    check_numbers(temperature, block)
    bank, test = np.asarray(bank), np.asarray(test)
    check_features(bank, "bank")
    check_features(test, "test", width=bank.shape[1])
    return bank, test


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


def row_blocks(test: Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """(rows [n, D], their numbers int32 [n]); the last block is filled up with zeros."""
    size = min(TEST_BLOCK, -(-len(test) // TEST_UNIT) * TEST_UNIT)
    for start in range(0, len(test), size):
        rows = test[start : start + size]
        rows = jnp.pad(rows, ((0, size - len(rows)), (0, 0)))
        yield rows, start + jnp.arange(size, dtype=jnp.int32)


def bank_block(bank: Array, test: Array, i: Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Block i of the bank: cosines float32 [block, n] (-inf = counted before), rows int32 [block].

    The last block overlaps the one before, since a slice has a fixed size.
    """
    start = jnp.minimum(i * block, len(bank) - block)
    rows = lax.dynamic_slice_in_dim(bank, start, block)
    cosines = jnp.matmul(rows, test.T, precision=lax.Precision.HIGHEST)
    numbers = start + jnp.arange(block, dtype=jnp.int32)
    return jnp.where((numbers >= i * block)[:, None], cosines, -jnp.inf), numbers
