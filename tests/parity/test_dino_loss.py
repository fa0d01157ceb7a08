"""Golden dino_loss: the official DINOLoss, value, gradient and centre."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.distill import distillation, moved_centre, teacher_probabilities


def test_dino_loss(golden):
    g = golden("dino_loss")
    student = jnp.asarray(g["student_logits"], jnp.float32).transpose(1, 0, 2)
    teacher = jnp.asarray(g["teacher_logits"], jnp.float32).transpose(1, 0, 2)
    probs = teacher_probabilities(teacher, g["center"][0], float(g["teacher_temp"]))

    def loss(s):
        return distillation(s, probs, student_temperature=float(g["student_temp"])).mean()

    value, grad = jax.value_and_grad(loss)(student)
    np.testing.assert_allclose(value, g["loss"], rtol=1e-5)
    expected = g["grad_student"].transpose(1, 0, 2)
    np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    centre = moved_centre(
        jnp.asarray(g["center"][0], jnp.float32), teacher, momentum=float(g["center_momentum"])
    )
    np.testing.assert_allclose(centre, g["new_center"][0], atol=1e-6)
