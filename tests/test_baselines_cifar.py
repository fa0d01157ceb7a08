"""configs/baselines_cifar.py: every method on the same data, network, optimiser and epochs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import write_images

from ood_jax.config import flat, stages_of
from ood_jax.data.sources import open_source
from ood_jax.recipe import load
from ood_jax.step import make_step
from ood_jax.train import init_state, prepare

ROOT = Path(__file__).resolve().parent.parent
WITH_OUTLIERS = ("outlier_exposure", "mix_oe")
METHODS = ("supervised", "label_smoothing", "logit_norm", *WITH_OUTLIERS, "rotation")
OWN = "score.scorers"  # rotation has a score of its own
SHARED = ("data.train", "data.test", "model.", "optim.", "train.", "score.", "head.outputs")


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def stages(argument):
    return stages_of(load([f"--config=configs/baselines_cifar.py:{argument}"]))


def only(argument):
    [config] = stages(argument).values()
    return config


@pytest.mark.parametrize(
    "argument",
    [*METHODS, *(f"{method},cifar100,resnet18" for method in METHODS)]
    + [f"{method},{size},tuned" for method in WITH_OUTLIERS for size in ("small", "resnet18")],
)
def test_every_recipe_has_a_step(argument, tmp_path):
    for config in stages(argument).values():
        with config.unlocked():
            classes = config.head.outputs
            labels = np.arange(512) % classes
            config.data.train = write_images(tmp_path, "train", 512, labels=labels)
            config.data.auxiliary = config.data.auxiliary and write_images(tmp_path, "aux", 8)
        run = prepare(config)
        state = jax.eval_shape(lambda run=run: init_state(run))
        images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.uint8)
        index = jax.ShapeDtypeStruct((128,), jnp.int32)
        host = {"image": images, "index": index, "label": index}
        if config.data.auxiliary:
            host |= {"auxiliary": images, "auxiliary_index": index}
        step = make_step(run.method, run.optimisers, run.rates, seed=0)
        new, metrics = jax.eval_shape(step, state, host)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
        assert metrics["loss"].shape == metrics["accuracy"].shape == ()


@pytest.mark.parametrize("size", ["small", "resnet18"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_table_compares_methods_alone(dataset, size):
    first, *others = (
        {k: v for k, v in flat(only(f"{method},{dataset},{size}")).items() if k.startswith(SHARED)}
        | {OWN: ()}
        for method in METHODS
    )
    assert len(first) > 50 and first["head.outputs"] == int(dataset.removeprefix("cifar"))
    for other in others:
        assert other == first


def test_no_image_or_class_of_the_test_is_trained_on(tmp_path):
    config = only("outlier_exposure")
    write_images(tmp_path, "tinyimagenet-train", 400, labels=np.arange(400) % 200)
    [far] = config.score.far
    train, test = (
        open_source(spec, root=str(tmp_path)).labels
        for spec in (config.data.auxiliary, far.partition("=")[2])
    )
    assert set(train) | set(test) == set(range(200)) and not set(train) & set(test)
    assert config.data.train.removesuffix("[:-1000]") + "[-1000:]" == config.score.calibration
    near = config.score.near[0].partition("=")[2]
    assert near.removesuffix("[1000:]") + "[:1000]" == config.score.validation


def test_tuning_begins_with_the_supervised_network():
    found = stages("outlier_exposure,tuned")
    assert list(found) == ["classify", "tune"]
    before, after = found.values()
    assert before.method.name == "supervised" and after.method.name == "outlier_exposure"
    assert after.model.weights == "stage:classify"
    assert after.train.epochs < before.train.epochs and after.optim.lr < before.optim.lr


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("outliers", "'outliers': begin with supervised, label_smoothing, logit_norm"),
        ("logit_norm,tuned", "use at most one each of cifar10 . cifar100, small . resnet18$"),
        ("outlier_exposure,cifar10,cifar100", "at most one each"),
    ],
)
def test_what_there_is_not(argument, says):
    with pytest.raises(ValueError, match=says):
        only(argument)
