"""Knowledge distillation from a fixed teacher: KL divergence of logits and of features (OAML)."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array

DIRECTIONS = ("student_teacher", "teacher_student")


def softmax_kl(first: Array, second: Array) -> jax.Array:
    """KL(p || q) with p = softmax(first), q = softmax(second), both [..., K]: float32 [...], nats.

    From logits, so that a probability rounded to 0 has neither an infinite value nor a NaN
    gradient.
    """
    log_p = jax.nn.log_softmax(jnp.asarray(first).astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(jnp.asarray(second).astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def knowledge(student: Array, teacher: Array, *, direction: str) -> jax.Array:
    """KL^1 of logits, or KL^2 of features (Gao et al., Eq. 3 and the one after it), per image.

    No temperature. Of features the softmax is over their dimensions, and the teacher's come through
    a trainable map (models/feature_map.py), which is why gradients go to both.

    Args:
      student, teacher: [B, K]. direction: student_teacher, KL(student || teacher) (paper) |
        teacher_student, KL(teacher || student) (released code).

    Returns:
      float32 [B], nats, 0 or more.

    Raises:
      ValueError: another direction, or shapes that differ.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"distillation {direction!r}: use {' or '.join(DIRECTIONS)}")
    shapes = [list(jnp.shape(x)) for x in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the student gives {shapes[0]} and the teacher {shapes[1]}: logits need the same"
            " classes, features a map to the student's width"
        )
    if direction == "student_teacher":
        return softmax_kl(student, teacher)
    return softmax_kl(teacher, student)
