"""Golden dino_negatives: the released loss with negatives, in its weighting and in the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.config import base
from ood_jax.losses.distill import (
    distillation,
    moved_centre,
    teacher_probabilities,
    uniform_cross_entropy,
)
from ood_jax.methods.dino_negatives import total_loss

CASES = {
    "combined": ("in_distribution", "auxiliary"),
    "indist_only": ("in_distribution",),
    "aux_only": ("auxiliary",),
}


def _counts(g):
    names = {"positive": "n_pos", "in_distribution": "n_neg_in", "auxiliary": "n_neg_aux"}
    return {name: int(g[key]) for name, key in names.items()}


def _parts(g, student, negatives):
    pos, neg_in, neg_aux = (int(g[k]) for k in ("n_pos", "n_neg_in", "n_neg_aux"))
    tau = float(g["student_temp"])
    teacher = jnp.asarray(g["teacher_logits"], jnp.float32)[: int(g["n_teacher_pos"])]
    probs = teacher_probabilities(
        teacher.transpose(1, 0, 2), g["center"][0], float(g["teacher_temp"])
    )
    positive = student[:pos].transpose(1, 0, 2)
    parts = {"positive": distillation(positive, probs, student_temperature=tau).mean()}
    ranges = {"in_distribution": (pos, pos + neg_in), "auxiliary": (pos + neg_in, None)}
    for source in negatives:
        start, stop = ranges[source]
        parts[source] = uniform_cross_entropy(student[start:stop], temperature=tau).mean()
    assert neg_aux == len(student) - pos - neg_in
    return parts


@pytest.mark.parametrize("case", CASES)
def test_official_weighting_and_gradient(golden, case):
    g = golden("dino_negatives")
    weighting = base("dino_negatives", "official").method.weighting

    def loss(student):
        return total_loss(_parts(g, student, CASES[case]), _counts(g), 1.0, weighting)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(g["student_logits"], jnp.float32))
    np.testing.assert_allclose(value, g[f"{case}/loss"], rtol=1e-5)
    expected = g[f"{case}/grad_student"]
    np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_paper_means(golden):
    g = golden("dino_negatives")
    both = CASES["combined"]
    parts = _parts(g, jnp.asarray(g["student_logits"], jnp.float32), both)
    for name, key in (("positive", "pos"), ("in_distribution", "neg_in"), ("auxiliary", "neg_aux")):
        np.testing.assert_allclose(parts[name], g[f"part_{key}"], rtol=1e-5)
    value = total_loss(parts, _counts(g), 1.0, base("dino_negatives").method.weighting)
    np.testing.assert_allclose(value, g["mean_form_combined"], rtol=1e-5)


def test_centre_official_bug_and_correct(golden):
    g = golden("dino_negatives")
    teacher = jnp.asarray(g["teacher_logits"], jnp.float32)[: int(g["n_teacher_pos"])]
    raw = teacher.transpose(1, 0, 2)
    centre, momentum = jnp.asarray(g["center"][0]), float(g["center_momentum"])
    np.testing.assert_allclose(
        moved_centre(centre, raw, momentum=momentum), g["correct_new_center"][0], atol=1e-6
    )
    np.testing.assert_allclose(
        moved_centre(centre, raw[:2, 0], momentum=momentum),
        g["official_new_center_bug"][0],
        atol=1e-6,
    )
