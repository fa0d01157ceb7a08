"""Golden oaml_distill: KL of logits and features in both directions, the feature map, the total."""

import jax
import numpy as np
import pytest

from ood_jax.losses.classify import cross_entropy
from ood_jax.losses.knowledge import knowledge
from ood_jax.models.feature_map import FeatureMap

LAYERS = {"pre_norm": "norm_0", "mlp1": "mlp_0", "norm1": "norm_1"}
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def place_of(name):
    """PyTorch's name -> (params or batch_stats, layer, leaf)."""
    layer, kind = name.split(".")
    if kind in STATISTICS:
        return "batch_stats", LAYERS[layer], STATISTICS[kind]
    leaf = "bias" if kind == "bias" else "kernel" if layer.startswith("mlp") else "scale"
    return "params", LAYERS[layer], leaf


def variables_of(g):
    found = {"params": {}, "batch_stats": {}}
    for key in (k for k in g if k.startswith("dt/param/")):
        group, layer, leaf = place_of(key.removeprefix("dt/param/"))
        found[group].setdefault(layer, {})[leaf] = g[key].T if leaf == "kernel" else g[key]
    return found


@pytest.mark.parametrize(
    ("direction", "which"), [("teacher_student", "official"), ("student_teacher", "paper")]
)
def test_logits(golden, direction, which):
    g = golden("oaml_distill")

    def loss(student):
        return knowledge(student, g["teacher_logits"], direction=direction).mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(g["student_logits"])
    np.testing.assert_allclose(value, g[f"logit_kl_{which}"], rtol=1e-5)
    close(grad, g[f"grad_logits_{which}"])


def test_features_through_the_map(golden):
    g = golden("oaml_distill")
    net = FeatureMap(g["student_features"].shape[1])
    variables = variables_of(g)

    def loss(params, student, direction):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        mapped, updated = net.apply(given, g["teacher_features"], True, mutable=["batch_stats"])
        return knowledge(student, mapped, direction=direction).mean(), (mapped, updated)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    (value, (mapped, updated)), (grads, grad) = run(
        variables["params"], g["student_features"], "teacher_student"
    )
    close(mapped, g["mapped_teacher"])
    np.testing.assert_allclose(value, g["feature_kl_official"], rtol=1e-5)
    close(grad, g["grad_features_official"])
    (value, _), _ = run(variables["params"], g["student_features"], "student_teacher")
    np.testing.assert_allclose(value, g["feature_kl_reverse"], rtol=1e-5)
    names = [k for k in g if k.startswith(("dt/grad_feature_kl/", "dt/stats_after/"))]
    assert len(names) == len(jax.tree.leaves(grads)) + len(jax.tree.leaves(updated))
    for name in names:
        group, layer, leaf = place_of(name.split("/")[-1])
        found = np.asarray({"params": grads, **updated}[group][layer][leaf])
        close(found.T if leaf == "kernel" else found, g[name])


def test_total(golden):
    g = golden("oaml_distill")
    cross = cross_entropy(g["student_logits"], g["labels"], label_smoothing=0.0).mean()
    np.testing.assert_allclose(cross, g["ce"], rtol=1e-5)
    logits = knowledge(g["student_logits"], g["teacher_logits"], direction="teacher_student")
    features = knowledge(g["student_features"], g["mapped_teacher"], direction="teacher_student")
    total = cross + g["w_logit"] * logits.mean() + g["w_feature"] * features.mean()
    np.testing.assert_allclose(total, g["total_official_without_mi"], rtol=1e-5)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
