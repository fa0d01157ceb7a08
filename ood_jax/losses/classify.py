"""Losses of classifiers: of images with labels, and of outliers."""

import jax
import jax.numpy as jnp

from ood_jax.losses.norm import norm_penalty
from ood_jax.types import Array

LEAST_NORM = 1e-7  # added to a norm that divides, as in LogitNorm's code


def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float | Array) -> Array:
    """-sum_k q_k log p_k with p = softmax(logits), q = (1 - e) onehot + e / K, e = label_smoothing.

    Szegedy et al. 2016, section 7; e in [0, 1], 0 = plain cross-entropy.

    Args:
      logits: [B, K]. labels: int32 [B], in 0..K-1. label_smoothing: a number, or float32 [B].

    Returns:
      float32 [B], nats; NaN where a label is outside 0..K-1, which training refuses.
    """
    s = logits.astype(jnp.float32)
    chosen = labels[:, None] == jnp.arange(s.shape[-1])
    picked = jnp.sum(jnp.where(chosen, s, 0.0), axis=-1)
    loss = jax.nn.logsumexp(s, axis=-1) - (1 - label_smoothing) * picked
    loss = loss - label_smoothing * s.mean(-1)
    return jnp.where(chosen.any(-1), loss, jnp.nan)


def logit_norm(logits: Array, labels: Array, *, temperature: float) -> Array:
    """Cross-entropy of f / (tau |f|), f = logits, tau = temperature (LogitNorm, Wei et al. 2022).

    Only the direction of f counts, so its gradient is orthogonal to f. As in the released code
    |f| + 1e-7 divides.

    Args:
      logits: [B, K]. labels: int32 [B], in 0..K-1.

    Returns:
      float32 [B], nats; at least log(1 + (K - 1) exp(-2 / tau)), their lower bound; NaN where a
      label is outside 0..K-1.
    """
    f = logits.astype(jnp.float32)
    norms = norm_penalty(f)[:, None] + LEAST_NORM
    return cross_entropy(f / (temperature * norms), labels, label_smoothing=0.0)


def cross_entropy_to_uniform(logits: Array) -> Array:
    """-1/K sum_k log p_k with p = softmax(logits): cross-entropy from the uniform distribution.

    Hendrycks et al. 2019, "Deep anomaly detection with outlier exposure", section 4.3.

    Args:
      logits: [B, K].

    Returns:
      float32 [B], nats; at least log K, where p is uniform.
    """
    s = logits.astype(jnp.float32)
    return jax.nn.logsumexp(s, axis=-1) - s.mean(-1)
