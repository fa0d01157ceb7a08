"""Outlier exposure of mined and generated vectors: value, what they move, a recipe, refusals."""

import jax
import numpy as np
import oaml_run
import pytest
from small_run import write_images
from test_baseline_methods import log_softmax, picked

from ood_jax import outliers, sharding, stages
from ood_jax.checkpoint import restore_for_scoring
from ood_jax.config import staged
from ood_jax.data.pipeline import train_batches
from ood_jax.data.vectors import with_vectors
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

BATCH, WIDTH = 8, 8
CASES = {  # data.near?, data.far?, data.auxiliary?
    "near": (True, False, False),
    "near, far": (True, True, False),
    "near, far, images": (True, True, True),
}


def classifier(folder, method, width=WIDTH):
    """That of oaml_run with a trunk that compiles fast."""
    c = oaml_run.classifier(folder, method)
    c.model.name, c.model.depth, c.model.width = "vit", 1, width
    c.model.heads, c.model.patch, c.model.drop_path = 1, 8, 0.0
    return c


def config_of(folder, case, weight=0.5):
    near, far, images = CASES[case]
    c = classifier(folder, "outlier_exposure")
    c.data.near = (
        oaml_run.write_outliers(folder / "near_outliers.npz", "near", WIDTH) if near else ""
    )
    c.data.far = oaml_run.write_outliers(folder / "far_outliers.npz", "far", WIDTH) if far else ""
    c.data.auxiliary = write_images(folder, "auxiliary", 20, 2) if images else ""
    c.method.outlier_weight, c.train.devices = weight, 1
    return c


def batch_of(run):
    images = train_batches(run.train, run.auxiliary, batch=BATCH, size=16, seed=0)
    host = next(with_vectors(images, run.vectors, batch=BATCH, seed=0))
    host.pop("skipped")
    return host, jax.device_get(jax.jit(run.method.views)(host, jax.random.key(0)))


def found_by(run, batch):
    """(state, loss, metrics, gradients) of the first step's loss."""
    state = jax.device_get(init_state(run))
    loss = jax.jit(jax.value_and_grad(run.method.updates[0].loss, has_aux=True))
    (value, aux), grads = loss(state.params, state, batch, jax.random.key(1))
    return state, float(value), aux.metrics, jax.device_get(grads)


@pytest.mark.parametrize("case", ["near", "near, far, images"])
def test_loss_is_what_the_paper_adds_up(case, tmp_path):
    run = prepare(config_of(tmp_path, case, weight=0.7))
    host, batch = batch_of(run)
    state, value, metrics, _ = found_by(run, batch)
    vectors = [np.float64(host[kind]) for kind in ("near", "far") if kind in host]
    assert [len(rows) for rows in vectors] == [BATCH] * sum(CASES[case][:2])
    layer = state.params["head"]["linear"]
    said = [rows @ np.float64(layer["kernel"]) + layer["bias"] for rows in vectors]
    seen = batch["both"] if "both" in batch else batch["image"][:, None]

    @jax.jit
    def apply(images):
        key = jax.random.key(1)
        return run.net.apply(state.params, state.stats, images, train=True, key=key)[0].logits

    def answers(images):
        return np.float64(apply(images))

    said += [answers(seen[:, 1])] if CASES[case][2] else []
    classes = picked(answers(seen[:, 0]), batch["label"])
    uniform = -sum(log_softmax(logits).mean() for logits in said)
    assert metrics["loss_class"] == pytest.approx(classes, rel=1e-4)
    assert metrics["loss_outliers"] == pytest.approx(uniform, rel=1e-4)
    assert value == pytest.approx(classes + 0.7 * uniform, rel=1e-4)


def test_vectors_move_the_classifier_alone(tmp_path):
    run, without = (prepare(config_of(tmp_path, "near, far", weight=w)) for w in (0.5, 0.0))
    _, batch = batch_of(run)
    *_, moved = found_by(run, batch)
    *_, still = found_by(without, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        moved["trunk"],
        still["trunk"],
    )
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(still["trunk"])) > 1e-3
    for name in ("kernel", "bias"):
        assert np.abs(moved["head"]["linear"][name] - still["head"]["linear"][name]).max() > 1e-3


def test_one_order_of_outliers_whatever_else_is_in_a_batch(tmp_path):
    found = [batch_of(prepare(config_of(tmp_path, case)))[0] for case in ("near", "near, far")]
    np.testing.assert_array_equal(found[0]["near"], found[1]["near"])
    np.testing.assert_array_equal(found[0]["index"], found[1]["index"])


def recipe(folder):
    """A teacher, near outliers of its embeddings, and its classifier told of them."""
    teacher, tune = (classifier(folder, name) for name in ("supervised", "outlier_exposure"))
    tune.model.weights, tune.data.near = "stage:teacher", "stage:mine"
    return staged("tuned", teacher=teacher, mine=oaml_run.mine(folder), tune=tune)


@pytest.mark.slow
def test_a_classifier_is_tuned_with_outliers_of_its_own_features(tmp_path):
    runs = stages.prepared(recipe(tmp_path / "data"))
    assert list(runs) == ["teacher", "mine", "tune"]
    stages.train(runs, str(tmp_path / "w"))
    teacher, tuned = (
        restore_for_scoring(str(folder)) for folder in (tmp_path / "w/teacher", tmp_path / "w")
    )
    near = outliers.read(tmp_path / "w/mine/outliers.npz", kind="near").features
    kernels = [np.float64(found.params["head"]["linear"]["kernel"]) for found in (teacher, tuned)]
    assert near.shape[1] == len(kernels[0]) and tuned.step == 4
    assert 0 < np.abs(kernels[1] - kernels[0]).max() < 0.5 * np.abs(kernels[0]).max()
    state = init_state(stages.started(runs["tune"], str(tmp_path / "w/teacher")))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), teacher.params)


@pytest.mark.parametrize(
    ("kind", "width"), [("near", WIDTH + 1), ("far", WIDTH - 1), ("far", 4 * WIDTH)]
)
def test_another_width_costs_no_compute(kind, width, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "place", lambda *a: pytest.fail("computed"))
    config = config_of(tmp_path, "near, far")
    config.data[kind] = oaml_run.write_outliers(tmp_path / "other.npz", kind, width)
    with pytest.raises(ValueError, match=rf"outliers of width {width} where .* have {WIDTH}: make"):
        prepare(config)


def test_a_teacher_of_another_width_is_refused_before_it_is_trained(tmp_path):
    config = recipe(tmp_path / "data")
    with config.unlocked():
        config.tune.model.width, config.tune.model.weights = 4, ""
    with pytest.raises(ValueError, match=r"stage tune: .* width 8 where .* features have 4: make"):
        stages.prepared(config)


def test_outliers_of_some_kind_are_needed(tmp_path):
    config = config_of(tmp_path, "near")
    config.data.near = ""
    with pytest.raises(ValueError, match=r"data.auxiliary = '': outlier_exposure learns"):
        prepare(config)
    config.data.embeddings = oaml_run.write_embeddings(tmp_path / "embeddings.npz", WIDTH)
    config.data.near = oaml_run.write_outliers(tmp_path / "near_outliers.npz", "near", WIDTH)
    with pytest.raises(ValueError, match=r"data.embeddings = .* does not read: set it to ''"):
        prepare(config)
