"""The norm of features as a loss, which OECL makes small for outliers, and whether it did."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array


def norm_penalty(features: Array) -> jax.Array:
    """|f|_2 along the last axis: the norm itself, not its square (Le-Gia & Ahn, Eq. 7).

    Args:
      features: [..., P], raw.

    Returns:
      float32 [...], 0 or more. The gradient is f / |f|, of length 1 however small f is; at f = 0 it
      is exactly 0, as in the released code, where `jnp.linalg.norm` gives NaN.
    """
    x = features.astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    zero = largest == 0
    scaled = x / jnp.where(zero, 1.0, largest)  # squares of tiny or huge values stay finite
    square = jnp.sum(scaled * scaled, axis=-1)
    zero, largest = zero[..., 0], largest[..., 0]
    return jnp.where(zero, 0.0, largest * jnp.sqrt(jnp.where(zero, 1.0, square)))


def told_apart(inside: Array, outside: Array) -> jax.Array:
    """The AUROC by which norms tell a batch's in-distribution images from its outliers.

    inside, outside: norms, of any shapes. Float32 scalar: the share of pairs in which the outlier
    has the smaller one, ties half; .5 = norms tell nothing. Has no gradient.
    """
    ranked, asked = (jax.lax.stop_gradient(x.ravel()) for x in (jnp.sort(outside, None), inside))
    below, upto = (jnp.searchsorted(ranked, asked, side=side) for side in ("left", "right"))
    return (below.mean() + upto.mean()) / (2 * ranked.size)
