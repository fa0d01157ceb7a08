"""The supervised baseline: its step, its labels, its recipe."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import small_config, write_images

from ood_jax import sharding
from ood_jax.data.pipeline import train_batches
from ood_jax.recipe import load
from ood_jax.step import make_step
from ood_jax.train import init_state, jitted_step, prepare

ROOT = Path(__file__).resolve().parent.parent


def supervised(folder: Path):
    """6 steps on 24 images of three classes, each class a brightness of its own."""
    c = small_config(folder, "supervised")
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = (60 * labels + 40)[:, None, None, None] + rng.integers(0, 30, (24, 16, 16, 3))
    np.savez(folder / "train.npz", images=images.astype(np.uint8), labels=labels)
    c.data.train, c.data.auxiliary = f"npz:{folder}/train.npz", ""
    c.head.name, c.head.outputs = "linear", 3
    c.optim.freeze_epochs, c.optim.lr, c.optim.lr_batch = 0.0, 0.02, 0
    c.train.batch, c.train.steps = 24, 25
    return c


def test_it_learns(tmp_path):
    config = supervised(tmp_path)
    config.method.label_smoothing = 0.1
    run = prepare(config)
    state, step = init_state(run), jitted_step(run)
    assert state.teacher is None and state.memory == {}
    batches = train_batches(run.train, batch=24, size=16, seed=0)
    rows = []
    for _ in range(25):
        host = {k: v for k, v in next(batches).items() if k != "skipped"}
        state, metrics = step(state, sharding.global_batch(run.mesh, host))
        rows.append(jax.device_get(metrics))
    assert {"loss", "accuracy"} <= set(rows[0])
    assert rows[0]["loss"] == pytest.approx(np.log(3), abs=0.5)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["accuracy"] > 0.9


def test_two_classifiers_begin_apart_and_both_learn(tmp_path):
    config = supervised(tmp_path)
    config.head.second_outputs = 3
    run = prepare(config)
    state, step = init_state(run), jitted_step(run)
    first, second = (np.asarray(state.params["head"][k]["kernel"]) for k in ("linear", "second"))
    assert np.abs(first - second).max() > 1e-3
    host = next(train_batches(run.train, batch=24, size=16, seed=0))
    host = sharding.global_batch(run.mesh, {k: v for k, v in host.items() if k != "skipped"})
    rows = []
    for _ in range(25):
        state, metrics = step(state, host)
        rows.append(jax.device_get(metrics))
    assert rows[0]["loss"] == pytest.approx(2 * np.log(3), abs=1)  # Eq. 2: their sum
    assert rows[-1]["accuracy"] > 0.9 and rows[-1]["second_accuracy"] > 0.9


@pytest.mark.parametrize("size", ["small", "resnet18"])
def test_recipe(size, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load([f"--config=configs/supervised_cifar.py:{size}"])
    assert config.data.train.removesuffix("[:-1000]") + "[-1000:]" == config.score.calibration
    near = config.score.near[0].partition("=")[2]
    assert near.removesuffix("[1000:]") + "[:1000]" == config.score.validation
    with config.unlocked():
        config.data.train = write_images(tmp_path, "train", 512, labels=np.arange(512) % 10)
    run = prepare(config)
    state = jax.eval_shape(lambda: init_state(run))
    images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.uint8)
    index = jax.ShapeDtypeStruct((128,), jnp.int32)
    step = make_step(run.method, run.optimisers, run.rates, seed=0)
    new, metrics = jax.eval_shape(step, state, {"image": images, "index": index, "label": index})
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == metrics["accuracy"].shape == ()


def test_recipe_of_another_size(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="size 'resnet20': use small, resnet18"):
        load(["--config=configs/supervised_cifar.py:resnet20"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, r"24 of 24 images of '.*' have no label, and supervised needs one of each"),
        (np.where(np.arange(24) < 5, -1, 0), "5 of 24 images"),
        (
            np.full(24, 1),
            r"all 24 images of '.*' are of class 1, and supervised tells classes apart",
        ),
        (np.arange(24) % 4, r"labels up to 3, head\.outputs = 3: use 4 outputs or more"),
    ],
)
def test_labels_are_checked_first(tmp_path, labels, says):
    config = supervised(tmp_path)
    arrays = {} if labels is None else {"labels": labels}
    config.data.train = write_images(tmp_path, "others", 24, **arrays)
    with pytest.raises(ValueError, match=says):
        prepare(config)


def test_class_filters_may_leave_gaps(tmp_path):
    config = supervised(tmp_path)
    config.data.train += "[classes=0,2]"
    assert set(prepare(config).train.labels.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("head.name", "none", "supervised needs classes: head.name 'none'"),
        ("head.outputs", 1, "head.outputs 1"),
        ("method.label_smoothing", 1.0, "label_smoothing = 1.0"),
        ("method.crop_scale", (0.0, 1.0), "view scale"),
        ("method.flip", 2.0, "view flip = 2.0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, key, value, says):
    config = supervised(tmp_path)
    part, leaf = key.split(".")
    config[part][leaf] = value
    with pytest.raises(ValueError, match=says):
        prepare(config)
