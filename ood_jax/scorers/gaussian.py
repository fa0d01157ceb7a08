"""Gaussians of train features: fitted with shrinkage, squared Mahalanobis distances to them.

A Gaussian of more images than dimensions is Whitened; one of fewer is Dual, which holds its images
instead of any n x n matrix (n: the width of a feature).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh

from ood_jax.scorers.covariance import (
    Estimator,
    Moments,
    few_threads,
    gram,
    inverse_root,
    moments,
    pseudo_root,
    shrink,
)
from ood_jax.scorers.rows import float_type, mean_of, rounded
from ood_jax.types import Array

HIGHEST = lax.Precision.HIGHEST


class Whitened(struct.PyTreeNode):
    """d^2(z) = |whitener (z - mean)|^2. whitener [r, n]; mean [n]; log_det of the covariance []."""

    mean: Array
    log_det: Array
    whitener: Array


class Dual(struct.PyTreeNode):
    """A covariance scale * X^T X + ridge * I through its N <= n centred rows X [N, n].

    d^2(z) = min_b |z - scale X^T b|^2 / ridge + scale |b|^2, at b = duals z with duals [N, n] =
    (scale X X^T + ridge I)^-1 X: Woodbury's identity as a sum of squares, so that nothing cancels,
    and at a minimum, so that an error in b counts only squared.
    """

    mean: Array
    log_det: Array
    rows: Array
    duals: Array
    scale: Array
    ridge: Array


Gaussian = Whitened | Dual


class Fitted(NamedTuple):
    """amount: of shrinkage, as `covariance.Shrunk` has it."""

    gaussian: Gaussian
    amount: float


def fit_rows(
    rows: np.ndarray, index: np.ndarray | None, mesh: Mesh, how: Estimator, what: str
) -> Fitted:
    """The Gaussian of rows[index], rows [M, n]; None = of all. what: its name in an error.

    Raises:
      ValueError: its covariance is singular.
    """
    mean = mean_of(rows, index)
    if (len(rows) if index is None else len(index)) > rows.shape[1]:
        return from_moments(moments(rows, mesh, mean[None], index=index), mean, how, what)
    chosen = rows if index is None else rows[index]
    return from_centred((chosen - mean).astype(float_type()), mean, mesh, how, what)


def from_moments(found: Moments, mean: np.ndarray, how: Estimator, what: str) -> Fitted:
    """The Gaussian of given moments about `mean` [n].

    Raises:
      ValueError: its covariance is singular.
    """
    scatter = found.scatter
    width = len(scatter)
    shrunk = shrink(
        how,
        count=found.images,
        width=width,
        trace=float(np.trace(scatter)),
        squares=float((scatter**2).sum()),
        fourth=found.fourth,
    )
    covariance = scatter * shrunk.scale
    covariance[np.diag_indices(width)] += shrunk.ridge
    root = inverse_root(covariance)
    if root is not None:
        return Fitted(_cast(Whitened, mean, root[1], root[0]), shrunk.amount)
    _refuse_singular(how, found.images, width, what)
    values, vectors = pseudo_root(covariance)
    whitener = np.zeros((width, width))
    whitener[: len(values)] = (vectors / np.sqrt(values)).T
    return Fitted(_cast(Whitened, mean, np.log(values).sum(), whitener), shrunk.amount)


def from_centred(
    centred: np.ndarray, mean: np.ndarray, mesh: Mesh, how: Estimator, what: str
) -> Fitted:
    """The Gaussian of N <= n centred rows [N, n] about `mean` [n]: no n x n matrix is made.

    Raises:
      ValueError: its covariance is singular.
    """
    from scipy.linalg import lapack

    count, width = centred.shape
    products = gram(centred, mesh)
    squares = np.diag(products)
    shrunk = shrink(
        how,
        count=count,
        width=width,
        trace=float(squares.sum()),
        squares=float((products**2).sum()),
        fourth=float((squares**2).sum()),
    )
    least = 10 * np.finfo(float_type()).eps * squares.sum() * shrunk.scale / width
    if not shrunk.ridge > least:
        _refuse_singular(how, count, width, what)
        return Fitted(_pseudo_dual(centred, mean, products, shrunk.scale), shrunk.amount)
    kernel = products * shrunk.scale
    kernel[np.diag_indices(count)] += shrunk.ridge
    with few_threads(count):
        factor, _ = lapack.dpotrf(kernel, lower=1)
        duals, _ = lapack.dpotrs(factor, centred, lower=1)
    log_det = 2 * np.log(np.diag(factor)).sum() + (width - count) * np.log(shrunk.ridge)
    dual = _cast(Dual, mean, log_det, centred, duals, shrunk.scale, shrunk.ridge)
    return Fitted(_filled(dual, rounded(count)), shrunk.amount)


def _pseudo_dual(
    centred: np.ndarray, mean: np.ndarray, products: np.ndarray, scale: float
) -> Whitened:
    values, vectors = pseudo_root(products)
    whitener = np.zeros((rounded(len(centred)), centred.shape[1]))
    whitener[: len(values)] = (vectors / values).T @ centred / np.sqrt(scale)
    return _cast(Whitened, mean, np.log(values * scale).sum(), whitener)


def _filled(dual: Dual, size: int) -> Dual:
    """Rows that are zero take part in nothing: so Gaussians of like sizes can be stacked."""
    more = ((0, size - len(dual.rows)), (0, 0))
    return dual.replace(rows=np.pad(dual.rows, more), duals=np.pad(dual.duals, more))


def _refuse_singular(how: Estimator, count: int, width: int, what: str) -> None:
    if how.pseudo_inverse and how.shrinkage == "none":
        return
    remedy = "ledoit_wolf, trace or ridge" if how.shrinkage == "none" else "ridge"
    raise ValueError(
        f"the covariance of {what} is singular under score.shrinkage = {how.shrinkage!r}"
        f" (images {count}, width {width}): use {remedy}, or more images"
    )


def _cast(kind: Callable[..., Any], *arrays: Any) -> Any:
    return kind(*(np.asarray(x, float_type()) for x in arrays))


def whiten(gaussian: Gaussian, offsets: Array) -> tuple[jax.Array, ...]:
    """Offsets from the mean [N, n] -> arrays [N, ...], linear, whose squares sum to d^2."""
    offsets = jnp.asarray(offsets)
    if isinstance(gaussian, Whitened):
        return (jnp.matmul(offsets, gaussian.whitener.T, precision=HIGHEST),)
    at = jnp.matmul(offsets, gaussian.duals.T, precision=HIGHEST)
    explained = jnp.matmul(at, gaussian.rows, precision=HIGHEST)
    residual = offsets - gaussian.scale * explained
    return residual * lax.rsqrt(gaussian.ridge), at * jnp.sqrt(gaussian.scale)


def squared_distance(gaussian: Gaussian, rows: Array) -> jax.Array:
    """Squared Mahalanobis distance of rows [N, n] to the mean: [N]."""
    parts = whiten(gaussian, rows - gaussian.mean)
    return sum((jnp.sum(part * part, axis=1) for part in parts[1:]), jnp.sum(parts[0] ** 2, axis=1))


class Mixture(struct.PyTreeNode):
    """C Gaussians, those of one shape stacked.

    places: int32 [C], where each is among all groups' members. amounts: of shrinkage, [C].
    """

    groups: tuple[Gaussian, ...]
    places: Array
    amounts: Array


def fit_mixture(
    rows: np.ndarray,
    members: tuple[np.ndarray, ...],
    names: tuple[str, ...],
    mesh: Mesh,
    how: Estimator,
) -> Mixture:
    """One Gaussian for each of C sets of rows. members: their indices; names: for errors.

    Raises:
      ValueError: a covariance is singular.
    """
    groups: dict[int, list[int]] = {}
    for number, index in enumerate(members):
        size = 0 if len(index) > rows.shape[1] else rounded(len(index))
        groups.setdefault(size, []).append(number)
    amounts = np.zeros(len(members), float_type())
    stacks = []
    for numbers in groups.values():
        stack: Any = None
        for place, number in enumerate(numbers):
            one, amounts[number] = fit_rows(rows, members[number], mesh, how, names[number])
            if stack is None:
                stack = jax.tree.map(
                    lambda x, n=len(numbers): np.empty((n, *x.shape), x.dtype), one
                )
            jax.tree.map(lambda into, x, at=place: into.__setitem__(at, x), stack, one)
        stacks.append(stack)
    places = np.argsort(np.concatenate([np.asarray(n) for n in groups.values()])).astype(np.int32)
    return Mixture(tuple(stacks), places, amounts)


def squared_distances(mixture: Mixture, rows: Array) -> tuple[jax.Array, jax.Array]:
    """(squared distances [C, N] of rows [N, n], log det [C]), in the order they were fitted in."""
    found = [lax.map(lambda g: squared_distance(g, rows), group) for group in mixture.groups]
    log_det = jnp.concatenate([group.log_det for group in mixture.groups])
    return jnp.concatenate(found)[mixture.places], log_det[mixture.places]
