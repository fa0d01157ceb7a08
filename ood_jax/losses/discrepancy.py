"""Maximum classifier discrepancy (Yu & Aizawa 2019): how far two classifiers differ in entropy."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array


def entropy(logits: Array) -> Array:
    """-sum_k p_k log p_k of each image's p = softmax(logits), over its classes.

    OpenOOD's `mcd_trainer.entropy` takes softmax and sum over the batch, which is another number.
    From logits, because the gradient of p log p has no value where p is rounded to 0.

    Args:
      logits: [..., K].

    Returns:
      float32 [...], nats, in [0, ln K].
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def discrepancy(logits: Array, second_logits: Array) -> Array:
    """Eq. 1: d = H(p1) - H(p2), of [..., K] and [..., K]: float32 [...], in [-ln K, ln K]."""
    return entropy(logits) - entropy(second_logits)


def margin_loss(discrepancies: Array, *, margin: float) -> Array:
    """Eq. 5, L_unsup = max(m - mean_i d_i, 0): of float [B] a float32 scalar.

    The hinge is on the batch's mean, not on each image: images of the classes may stay at 0 while
    the others raise the mean.
    """
    return jnp.maximum(margin - discrepancies.mean(dtype=jnp.float32), 0.0)
