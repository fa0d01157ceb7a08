"""Covariances of train features: scatter or Gram matrix on the mesh, shrinkage, inverse roots.

Matrix products of rows are float32 at highest precision on the devices (float64 with
jax_enable_x64); what is made of the products is float64 LAPACK on the host.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.scorers.rows import float_type, padded, place, rounded, summed
from ood_jax.types import Array

SHRINKAGES = ("ledoit_wolf", "trace", "ridge", "none")
PARTS = 8  # of a block, summed one after another
SMALL = 2048  # largest order of a matrix that is factorised in one thread


class Estimator(NamedTuple):
    """How a covariance is estimated from N centred rows: keep * scatter / (N - ddof) + ridge * I.

    shrinkage: ledoit_wolf (Ledoit and Wolf 2004, as scikit-learn has it) | trace (ridge =
    strength * tr / n) | ridge (ridge = strength) | none. pseudo_inverse: where the covariance is
    singular and nothing shrinks it, only the directions count that vary in the train set.
    """

    shrinkage: str
    strength: float
    ddof: int = 0
    pseudo_inverse: bool = False


def estimator(config: ConfigDict, *, pseudo_inverse: bool = False) -> Estimator:
    """The estimator that config.shrinkage and config.shrinkage_strength ask for.

    Raises:
      ValueError: no such shrinkage; a strength that is not above 0.
    """
    if config.shrinkage not in SHRINKAGES:
        raise ValueError(f"score.shrinkage = {config.shrinkage!r}: use {', '.join(SHRINKAGES)}")
    if config.shrinkage in ("trace", "ridge") and not 0 < config.shrinkage_strength < np.inf:
        raise ValueError(
            f"score.shrinkage_strength = {config.shrinkage_strength}: use a number above 0"
        )
    return Estimator(config.shrinkage, config.shrinkage_strength, pseudo_inverse=pseudo_inverse)


class Moments(NamedTuple):
    """Sums over N centred rows x, float64. scatter: sum x x^T [n, n]. fourth: sum |x|^4."""

    images: int
    scatter: np.ndarray
    fourth: float


def moments(
    rows: np.ndarray,
    mesh: Mesh,
    centres: np.ndarray,
    numbers: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> Moments:
    """Moments of rows [M, n] about their centres, one pass over blocks on the mesh.

    centres: [C, n]. numbers: int32 [M], which centre is a row's; None = there is one. index: the
    rows that count; None = all.
    """
    count = len(rows) if index is None else len(index)
    centres = centres.astype(float_type())
    arrays = (rows,) if numbers is None else (rows, numbers)
    function = _about_one if numbers is None else _about_many
    scatter, fourth = summed(function, arrays, mesh, centres, index=index)
    return Moments(count, scatter, float(fourth))


def _about_one(counts: Array, rows: Array, centres: Array) -> tuple[Array, Array]:
    return _sums(counts, jnp.asarray(rows) - centres)


def _about_many(counts: Array, rows: Array, numbers: Array, centres: Array) -> tuple[Array, Array]:
    return _sums(counts, jnp.asarray(rows) - jnp.asarray(centres)[numbers])


def _sums(counts: Array, centred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scatter and fourth moment; summed in parts, which halves the rounding of few rows."""
    centred = jnp.where(counts[:, None], centred, 0.0)
    parts = centred.reshape(PARTS, -1, centred.shape[1])

    def add(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        return total + jnp.matmul(part.T, part, precision=lax.Precision.HIGHEST), None

    width = centred.shape[1]
    scatter, _ = lax.scan(add, jnp.zeros((width, width), centred.dtype), parts)
    return scatter, jnp.sum(jnp.sum(centred**2, axis=1) ** 2)


def gram(centred: np.ndarray, mesh: Mesh) -> np.ndarray:
    """All inner products of centred rows [N, n]: float64 [N, N]."""
    size = rounded(len(centred), mesh.size)
    rows = place(mesh, padded(centred, size, slice(None)))
    found = jax.device_get(_gram(rows, mesh=mesh))
    return np.asarray(found[: len(centred), : len(centred)], np.float64)


@partial(jax.jit, static_argnames="mesh")
def _gram(rows: Array, *, mesh: Mesh) -> Array:
    products = jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST)
    return lax.with_sharding_constraint(products, sharding.replicated(mesh))


class Shrunk(NamedTuple):
    """The covariance is scale * scatter + ridge * I; amount: what a reader is told."""

    scale: float
    ridge: float
    amount: float


def shrink(
    how: Estimator, *, count: int, width: int, trace: float, squares: float, fourth: float
) -> Shrunk:
    """Scale and ridge for N rows of n numbers.

    trace, squares: tr S and |S|_F^2 of the scatter matrix S, the same for the Gram matrix: so
    Ledoit-Wolf needs no n x n matrix. fourth: sum |x|^4.
    """
    divisor = max(count - how.ddof, 1)
    variance = trace / divisor / width
    if how.shrinkage == "trace":
        return Shrunk(1 / divisor, how.strength * variance, how.strength)
    if how.shrinkage == "ridge":
        return Shrunk(1 / divisor, how.strength, how.strength)
    if how.shrinkage == "none":
        return Shrunk(1 / divisor, 0.0, 0.0)
    norm = squares / count**2
    distance = norm - (trace / count) ** 2 / width
    noise = min((fourth / count - norm) / count, distance)
    amount = noise / distance if noise > 0 and width > 1 else 0.0
    return Shrunk((1 - amount) / divisor, amount * variance, amount)


@contextlib.contextmanager
def few_threads(order: int) -> Iterator[None]:
    """LAPACK in one thread for matrices of a small order.

    Its threads wait for each other in a busy loop, and where XLA's or another job's hold the cores,
    a factorisation of milliseconds takes a second.
    """
    if order > SMALL:
        yield
        return
    with _thread_pools().limit(limits=1, user_api="blas"):
        yield


@lru_cache
def _thread_pools() -> Any:
    import scipy.linalg  # noqa: F401  its pool must be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def inverse_root(covariance: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(W with W^T W = covariance^-1, log det covariance), float64 [n, n]; None = singular.

    A direction whose variance is, to the precision of the products, what the others already
    explain makes it singular.
    """
    from scipy.linalg import lapack

    variances = np.diag(covariance)
    if not variances.min() > 0:
        return None
    with few_threads(len(covariance)):
        factor, failed = lapack.dpotrf(covariance, lower=1, clean=1)
        if failed or (np.diag(factor) ** 2 / variances).min() < 10 * np.finfo(float_type()).eps:
            return None
        inverse, _ = lapack.dtrtri(factor, lower=1)
    return inverse, 2 * float(np.log(np.diag(factor)).sum())


def pseudo_root(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [r] that are not rounding noise, and their eigenvectors [n, r], float64."""
    from scipy.linalg import eigh

    with few_threads(len(symmetric)):
        values, vectors = eigh(symmetric)
    kept = values > len(values) * np.finfo(float_type()).eps * max(values[-1], 0.0)
    return values[kept], vectors[:, kept]
