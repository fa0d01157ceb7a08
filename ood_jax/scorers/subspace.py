"""Scores of what lies outside the principal subspace of the last layer's inputs: ViM, Residual."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.covariance import moments
from ood_jax.scorers.linear import Linear, inputs, linear, logits
from ood_jax.scorers.rows import summed
from ood_jax.types import Array, Features, Scorer


class Subspace(struct.PyTreeNode):
    """origin: float32 [D], where the logits without bias vanish. null: float32 [D, D - dim], an
    orthonormal basis of what lies outside the principal `dim` directions. alpha: float32 []."""

    layer: Linear
    origin: Array
    null: Array
    alpha: Array


def vim(config: ConfigDict, mesh: Mesh) -> Scorer:
    """alpha * residual - logsumexp(logits) (Wang et al. 2022, ViM).

    alpha makes the train mean of alpha * residual that of the largest logit. config.vim_dim: of the
    principal subspace; 0 = 1000 for D >= 2048, 512 for D >= 768, else D / 2 (chosen).

    Raises:
      ValueError: a negative dimension.
    """
    _check(config)

    def fit(features: Features) -> Subspace:
        state, rows = _fitted(features, "vim", config, mesh)
        return state.replace(alpha=np.asarray(alpha_of(state, rows, mesh), np.float32))

    def score(state: Subspace, features: Features) -> jax.Array:
        rows = inputs(state.layer, features)
        energy = jax.nn.logsumexp(logits(state.layer, rows), axis=1)
        return residual_norm(state, rows) * state.alpha - energy

    def facts(state: Subspace) -> dict[str, Any]:
        return _facts(state) | {"alpha": float(state.alpha)}

    return Scorer(fit, score, ("last_layer",), facts=facts)


def residual(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Norm outside the principal subspace (Residual of Wang et al. 2022); config.vim_dim as vim.

    The subspace is the train set's; OpenOOD takes it from the validation set.

    Raises:
      ValueError: a negative dimension.
    """
    _check(config)

    def fit(features: Features) -> Subspace:
        return _fitted(features, "residual", config, mesh)[0]

    def score(state: Subspace, features: Features) -> jax.Array:
        return residual_norm(state, inputs(state.layer, features))

    return Scorer(fit, score, ("last_layer",), facts=_facts)


def _fitted(
    features: Features, name: str, config: ConfigDict, mesh: Mesh
) -> tuple[Subspace, np.ndarray]:
    """The subspace with alpha = 1, and the rows it was fitted to."""
    layer, rows = linear(features, name)
    origin = origin_of(layer)
    null = null_space(rows, origin, dimension(config.vim_dim, rows.shape[1]), mesh)
    return Subspace(layer, origin, null, alpha=np.ones((), np.float32)), rows


def origin_of(layer: Linear) -> np.ndarray:
    """-pinv(kernel^T) bias, float32 [D] (ViM, Sec. 4.1)."""
    kernel, bias = np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64)
    return -np.linalg.lstsq(kernel.T, bias, rcond=1e-15)[0].astype(np.float32)


def dimension(asked: int, width: int) -> int:
    """The dimension of the principal subspace of inputs of this width.

    Raises:
      ValueError: nothing would be left outside.
    """
    if asked >= width:
        raise ValueError(
            f"score.vim_dim = {asked}: the last layer's inputs are {width} wide; use 1 to"
            f" {width - 1}, or 0 to go by the width"
        )
    if asked:
        return asked
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


def null_space(rows: np.ndarray, origin: np.ndarray, dim: int, mesh: Mesh) -> np.ndarray:
    """The D - dim directions of least second moment of rows [M, D] about origin: [D, D - dim]."""
    from scipy.linalg import eigh

    mean = rows.mean(0, dtype=np.float64)
    shift = mean - origin
    scatter = moments(rows, mesh, mean[None]).scatter + len(rows) * np.outer(shift, shift)
    _, vectors = eigh(scatter, subset_by_index=(0, len(mean) - dim - 1))
    return vectors.astype(np.float32)


def alpha_of(state: Subspace, rows: np.ndarray, mesh: Mesh) -> float:
    """Mean of the largest logit over the mean residual norm, of rows [M, D] (ViM, Eq. 6).

    Raises:
      ValueError: the rows have no residual.
    """
    largest, left, whole = summed(_sums, (rows,), mesh, state)
    if not left > 1e-6 * whole:
        raise ValueError(
            f"vim: the train features lie in {rows.shape[1] - state.null.shape[1]} dimensions, with"
            " nothing outside: use a smaller score.vim_dim, or more images"
        )
    return float(largest / left)


def _sums(counts: Array, rows: Array, state: Subspace) -> tuple[Array, Array, Array]:
    largest = jnp.max(logits(state.layer, rows), axis=1)
    offsets = rows - state.origin
    whole = jnp.sqrt(jnp.sum(offsets**2, axis=1))
    found = (largest, residual_norm(state, rows), whole)
    return tuple(jnp.sum(jnp.where(counts, x, 0.0)) for x in found)  # type: ignore[return-value]


def residual_norm(state: Subspace, rows: Array) -> jax.Array:
    """Norm of rows [N, D], seen from the origin, outside the principal subspace: [N]."""
    left = jnp.matmul(rows - state.origin, state.null, precision=lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.sum(left**2, axis=1))


def _facts(state: Subspace) -> dict[str, Any]:
    width, left = state.null.shape
    return {"dim": int(width - left)}


def _check(config: ConfigDict) -> None:
    if config.vim_dim < 0:
        raise ValueError(f"score.vim_dim = {config.vim_dim}: use 1 or more, or 0 for the rule")
