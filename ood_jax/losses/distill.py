"""Self-distillation (DINO, Caron et al. 2021) with negatives (Rafiee et al. 2022, Eqs. 3-5)."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array


def teacher_probabilities(logits: Array, centre: Array, temperature: Array | float) -> Array:
    """p_t = softmax((g_t - c) / tau_t) without gradient: [..., K] -> float32 [..., K]."""
    return jax.lax.stop_gradient(jax.nn.softmax((logits - centre) / temperature))


def distillation(
    student_logits: Array, teacher_probs: Array, *, student_temperature: float
) -> Array:
    """Eq. 3: cross-entropy of the student's views under the teacher's, per image.

    Args:
      student_logits: [B, V, K], the G views that the teacher also saw first.
      teacher_probs: [B, G, K], from `teacher_probabilities`.
      student_temperature: tau_s.

    Returns:
      float32 [B]: the mean over the G V - G pairs of different views of -sum_k p_t log p_s.

    Raises:
      ValueError: fewer than two student views, or fewer than the teacher's.
    """
    views, both = student_logits.shape[1], teacher_probs.shape[1]
    if views < 2 or views < both or both < 1:
        raise ValueError(
            f"distillation needs two student views and the teacher's among them: got {views}"
            f" student and {both} teacher views"
        )
    s = student_logits / student_temperature
    # -<p_t, log p_s> = logsumexp(s) - <p_t, s>, summed over the pairs before any product with K.
    normaliser = jax.nn.logsumexp(s, axis=-1)  # [B, V]
    pairs = both * normaliser.sum(1) - normaliser[:, :both].sum(1)
    others = s.sum(1, keepdims=True) - s[:, :both]  # for each t the sum of s over views != t
    pairs = pairs - jnp.sum(teacher_probs * others, axis=(1, 2))
    return pairs / (both * (views - 1))


def uniform_cross_entropy(logits: Array, *, temperature: float) -> Array:
    """Eq. 4: -(1/K) sum_k log p_k with p = softmax(logits / temperature): [..., K] -> [...]."""
    s = logits / temperature
    return jax.nn.logsumexp(s, axis=-1) - s.mean(-1)


def moved_centre(centre: Array, teacher_logits: Array, *, momentum: float) -> Array:
    """c <- momentum c + (1 - momentum) mean over all rows of raw teacher logits [..., K]."""
    mean = teacher_logits.reshape(-1, centre.shape[-1]).mean(0)
    return momentum * centre + (1 - momentum) * jax.lax.stop_gradient(mean)


def entropy(probs: Array) -> Array:
    """-sum_k p log p, nats: [..., K] -> [...]; 0 log 0 = 0."""
    return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)
