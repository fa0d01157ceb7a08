"""Losses of classifiers with labels."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array


def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float) -> Array:
    """-sum_k q_k log p_k with p = softmax(logits), q = (1 - e) onehot + e / K, e = label_smoothing.

    Szegedy et al. 2016, section 7; e in [0, 1), 0 = plain cross-entropy.

    Args:
      logits: [B, K]. labels: int32 [B], in 0..K-1.

    Returns:
      float32 [B], nats; NaN where a label is outside 0..K-1, which training refuses.
    """
    s = logits.astype(jnp.float32)
    chosen = labels[:, None] == jnp.arange(s.shape[-1])
    picked = jnp.sum(jnp.where(chosen, s, 0.0), axis=-1)
    loss = jax.nn.logsumexp(s, axis=-1) - (1 - label_smoothing) * picked
    loss = loss - label_smoothing * s.mean(-1)
    return jnp.where(chosen.any(-1), loss, jnp.nan)
