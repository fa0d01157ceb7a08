"""The margin-entropy loss: classes that were left out must look more uncertain than the others."""

import jax.numpy as jnp

from ood_jax.losses.discrepancy import entropy
from ood_jax.types import Array


def margin_entropy(inside: Array, outside: Array, *, margin: float) -> Array:
    """max(m + mean_i H(p_i) - mean_o H(p_o), 0), H = entropy over classes (Vyas et al. 2018).

    The hinge is on the difference of two means, not on each image.

    Args:
      inside: logits [B, K] of in-distribution images. outside: logits [M, K] of left-out ones.
      margin: m, nats; from ln K on no classifier can reach it.

    Returns:
      float32 scalar, in [0, m + ln K].
    """
    return jnp.maximum(margin + entropy(inside).mean() - entropy(outside).mean(), 0.0)
