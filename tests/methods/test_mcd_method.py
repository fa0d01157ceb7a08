"""MCD: what its two updates do, in which order; what it refuses and warns of; its recipe."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import small_config

from ood_jax import models
from ood_jax.losses.classify import cross_entropy
from ood_jax.losses.discrepancy import entropy
from ood_jax.methods import mcd
from ood_jax.recipe import load
from ood_jax.step import make_step, trained
from ood_jax.train import abstract_state, init_state, jitted_step, prepare
from ood_jax.types import TrainState
from ood_jax.views.draws import draw_numbers

ROOT = Path(__file__).resolve().parent.parent.parent
BATCH, CLASSES, RATE = 24, 3, 0.05


def config_of(folder: Path):
    """24 dark images of three classes; unlabelled: 12 like them and 12 bright ones."""
    c = small_config(folder, "mcd")
    rng = np.random.default_rng(0)

    def images(levels):
        noise = rng.integers(0, 30, (len(levels), 16, 16, 3))
        return (np.asarray(levels)[:, None, None, None] + noise).astype(np.uint8)

    labels = np.arange(24) % CLASSES
    np.savez(folder / "train.npz", images=images(60 * labels), labels=labels)
    np.savez(folder / "inside.npz", images=images(60 * labels[:12]))
    np.savez(folder / "outside.npz", images=images(np.full(12, 220)))
    c.data.train = f"npz:{folder}/train.npz"
    c.data.auxiliary = f"npz:{folder}/inside.npz + npz:{folder}/outside.npz"
    c.model.name, c.model.depth, c.model.width, c.model.stride = "resnet", 10, 4, 2
    c.head.name, c.head.outputs, c.head.second_outputs = "linear", CLASSES, CLASSES
    c.method.margin = 0.6
    c.method.crop_pad = 1
    c.optim.name, c.optim.lr, c.optim.lr_batch, c.optim.min_lr = "sgd", RATE, 0, RATE
    c.optim.momentum, c.optim.clip, c.optim.freeze_epochs, c.optim.warmup_epochs = 0.5, 0.0, 0, 0
    c.optim.weight_decay = c.optim.weight_decay_end = 0.0
    c.train.batch, c.train.steps, c.train.epochs, c.train.devices = BATCH, 60, 60.0, 1
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare(config_of(tmp_path_factory.mktemp("mcd")))


@pytest.fixture(scope="module")
def host(run):
    every = np.arange(BATCH)
    return {
        "image": run.train.images(every),
        "index": every.astype(np.int32),
        "label": run.train.labels,
        "auxiliary": run.auxiliary.images(every),
        "auxiliary_index": every.astype(np.int32),
    }


@pytest.fixture(scope="module")
def rows(run, host):
    """Metrics of 60 steps; the states before the first, after it, and at the end."""
    state, step = init_state(run), jitted_step(run)
    out, states = [], [jax.device_get(state)]
    for i in range(60):
        state, metrics = step(state, host)
        out.append(jax.device_get(metrics))
        if i in (0, 59):
            states.append(jax.device_get(state))
    return out, *states


def test_unlabelled_images_are_told_from_labelled_ones(rows):
    last = rows[0][-1]
    assert last["accuracy"] > 0.9 and last["second_accuracy"] > 0.9
    assert last["unlabelled_discrepancy_1"] > last["discrepancy_1"] + 0.3
    assert last["unlabelled_l1_1"] > last["l1_1"] + 0.2
    assert last["loss_unsupervised_1"] == pytest.approx(
        max(0.6 - last["unlabelled_discrepancy_1"], 0), abs=1e-6
    )


def test_step_b_follows_step_a_with_its_momentum(run, host, rows):
    """Both steps by hand: p -= lr m, m = g + .5 m, first of L_sup, then of L_sup + L_unsup."""
    assert len(run.method.updates) == 2 and trained(run.method) == (".*",)
    (metrics, *_), state, after, _ = rows
    view_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    drawn = {**host, **{k: draw_numbers(v) for k, v in host.items() if k.endswith("index")}}
    batch = jax.jit(run.method.views)(drawn, view_key)
    both, labels = batch["both"], host["label"]
    assert both.shape == (BATCH, 2, 16, 16, 3)

    def forward(params, stats, images):
        return run.net.apply(params, stats, images, train=True, key=jax.random.key(1))

    def classify(params, stats):
        outputs, new = forward(params, stats, both[:, 0])
        return two(outputs.logits, outputs.second_logits), (new, outputs)

    def push(params, stats):
        outputs, new = forward(params, stats, jnp.concatenate([both[:, 0], both[:, 1]]))
        first, second = outputs.logits, outputs.second_logits
        apart = (entropy(first) - entropy(second))[BATCH:].mean()
        value = two(first[:BATCH], second[:BATCH]) + jnp.maximum(0.6 - apart, 0)
        return value, (new, outputs)

    def two(first, second):
        return sum(cross_entropy(x, labels, label_smoothing=0).mean() for x in (first, second))

    params, stats = state.params, state.stats
    momentum = jax.tree.map(np.zeros_like, params)
    for i, loss in enumerate((classify, push)):
        (value, (stats, _)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, stats)
        np.testing.assert_allclose(metrics["loss" + "_1" * i], value, rtol=1e-4)
        momentum = jax.tree.map(lambda g, m: g + 0.5 * m, grads, momentum)
        params = jax.tree.map(lambda p, m: p - RATE * m, params, momentum)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.stats, stats
    )


def test_the_mean_over_the_batch_is_not_that_over_parts(tmp_path):
    config = config_of(tmp_path)
    config.train.accumulate = 2
    with pytest.raises(ValueError, match=r"accumulate = 2: the loss of mcd needs the whole batch"):
        prepare(config)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"method.margin": 1.2}, r"margin = 1\.2: use .* less than ln K = 1\.0986, .* K = 3 "),
        ({"method.margin": float(np.log(3))}, "ln K"),
        ({"method.margin": 0.0}, "more than 0"),
        ({"method.margin": float("nan")}, "more than 0"),
        ({"head.second_outputs": 0}, "second_outputs = 0: mcd needs two classifiers .* 3, in the"),
        ({"head.second_outputs": 2}, "second_outputs = 2"),
        ({"head.outputs": 1, "head.second_outputs": 1}, "head.outputs 1; use .* 2 or more"),
        ({"head.name": "none"}, "mcd needs classes: head.name 'none'"),
        ({"head.name": "dino"}, "head.name 'dino': mcd needs linear or projection"),
        ({"data.auxiliary": ""}, "data.auxiliary = '': mcd learns from other images too"),
        ({"data.auxiliary": "{aux}[:0]"}, "leaves none of the 20 images"),
        ({"data.auxiliary": "({aux} + b={aux})[40:]"}, "leaves none of the 40 images"),
        ({"data.auxiliary": "a={aux} + b={aux}[20:]"}, "leaves none of the 20 images"),
        ({"data.train": "{train}[classes=1]"}, "all 8 images of .* are of class 1, and mcd"),
        ({"method.crop_pad": -1}, "pad"),
    ],
)
def test_what_makes_no_sense_is_refused_before_compute(tmp_path, keys, says):
    config = config_of(tmp_path)
    places = {"aux": f"npz:{tmp_path}/auxiliary.npz", "train": config.data.train}
    for key, value in keys.items():
        part, leaf = key.split(".")
        config[part][leaf] = value.format(**places) if isinstance(value, str) else value
    with pytest.raises(ValueError, match=says):
        prepare(config)


def test_a_set_without_an_image_is_refused(tmp_path):
    config = config_of(tmp_path)
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 16, 16, 3), np.uint8))
    config.data.auxiliary = f"npz:{tmp_path}/empty.npz"
    with pytest.raises(ValueError, match=r"empty\.npz"):
        prepare(config)


def test_warnings():
    fine = {"step": 40, "accuracy": 0.7, "accuracy_before": 0.8}
    fine |= {"discrepancy_1": 0.1, "unlabelled_discrepancy_1": 1.1}
    assert mcd._warn(fine, 30) == []
    flat = fine | {"unlabelled_discrepancy_1": 0.05}
    assert "differ no more on unlabelled images" in mcd._warn(flat, 30)[0]
    assert mcd._warn(flat | {"step": 29}, 30) == []  # it may come yet
    found = mcd._warn(fine | {"accuracy": 0.6}, 30)
    assert len(found) == 1 and "accuracy 60.0 %, 80.0 % at the first step" in found[0]


def test_the_accuracy_before_is_that_of_the_first_step(rows):
    metrics, _, _, last = rows
    assert {float(row["accuracy_before"]) for row in metrics} == {float(metrics[0]["accuracy"])}
    assert last.memory["accuracy_before"] == metrics[0]["accuracy"]


RECIPE = "configs/mcd_cifar.py"


def recipe(monkeypatch, argument: str):
    monkeypatch.chdir(ROOT)
    return load([f"--config={RECIPE}:{argument}"])


@pytest.mark.parametrize("size", ["small", pytest.param("densenet", marks=pytest.mark.slow), "wrn"])
def test_recipe(size, tmp_path, monkeypatch):
    config = recipe(monkeypatch, f"cifar10,{size}")
    both = {"pretrain": config.pretrain, "finetune": config.finetune}
    assert config.stages == tuple(both) and config.finetune.model.weights == "stage:pretrain"
    rng = np.random.default_rng(0)
    labels = np.arange(640) % 10
    np.savez(
        tmp_path / "any.npz",
        images=rng.integers(0, 256, (640, 32, 32, 3), np.uint8),
        labels=labels,
    )
    for stage, own in both.items():
        with own.unlocked():
            own.data.train = f"npz:{tmp_path}/any.npz"
            own.data.auxiliary = own.data.auxiliary and own.data.train
            own.model.weights = ""
        run = prepare(own)
        rates = [float(run.rates.learning_rate(s)) for s in (0, run.config.train.steps - 1)]
        if size != "small":
            assert rates == pytest.approx([0.1, 0.001] if stage == "pretrain" else [0.1, 0.1])
        if stage == "pretrain":
            continue  # its step is tests/test_supervised.py's
        batch = own.train.batch
        images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.uint8)
        index = jax.ShapeDtypeStruct((batch,), jnp.int32)
        host = {"image": images, "index": index, "label": index}
        host |= {"auxiliary": images, "auxiliary_index": index}
        state = abstract_state(run)
        new, metrics = jax.eval_shape(
            make_step(run.method, run.optimisers, run.rates, seed=0), state, host
        )
        assert isinstance(new, TrainState)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
        assert metrics["loss"].shape == ()


def test_recipe_of_other_mixtures(monkeypatch):
    c = recipe(monkeypatch, "cifar100,small").finetune
    assert c.data.auxiliary == (
        "cifar100=npz:cifar100-test.npz[1000:] + cifar10=npz:cifar10-test.npz[1000:]"
    )
    assert c.score.near == ("cifar10=npz:cifar10-test.npz[1000:]",) and c.score.far == ()
    assert c.score.scorers[0] == "l1_discrepancy" and c.head.second_outputs == 100

    words = "cifar10,tin_crop+lsun_crop,small,n_in=90,n_out=50@3,test=cifar100+tinyimagenet"
    c = recipe(monkeypatch, words).finetune
    assert c.data.auxiliary == (
        "cifar10=npz:cifar10-test.npz[1000:][sample=90] + tin_crop=folder:Imagenet[1000:]"
        "[sample=50@3] + lsun_crop=folder:LSUN[1000:][sample=50@3]"
    )
    assert c.score.near == ("cifar100=npz:cifar100-test.npz[1000:]",)
    assert c.score.far == ("tinyimagenet=npz:tinyimagenet-train.npz[classes=160-199]",)


def test_recipe_of_food(monkeypatch):
    """Shapes only: 101 classes, and the network takes them."""
    monkeypatch.chdir(ROOT)
    c = load(["--config=configs/food101_mcd.py:lsun_crop,small"])
    own, scored = c.finetune, "tfds:food101:validation[1000:]"
    assert c.pretrain.data.train == own.data.train == "tfds:food101:train"
    assert own.data.test == scored and own.score.calibration == "tfds:food101:validation[:1000]"
    assert own.data.auxiliary == f"food={scored} + lsun_crop=folder:LSUN[1000:]"
    assert own.score.far == ("lsun_crop=folder:LSUN[1000:]",) and own.score.near == ()
    net = models.build(own)
    shapes = jax.eval_shape(lambda: models.init_params(net, own))
    images = jax.ShapeDtypeStruct((2, own.data.size, own.data.size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(lambda p, s, x: net.apply(p, s, x, train=False), *shapes, images)
    assert outputs.logits.shape == outputs.second_logits.shape == (2, 101)
    with pytest.raises(ValueError, match="'isun': use tin_crop or lsun_crop, and densenet or wrn"):
        load(["--config=configs/food101_mcd.py:isun"])


def test_inductive_mixtures_hold_nothing_that_is_trained_on_or_scored(monkeypatch):
    c = recipe(monkeypatch, "cifar10,cifar100,inductive,small")
    assert c.pretrain.data.train == c.finetune.data.train == "npz:cifar10-train.npz[:-6000]"
    assert c.finetune.score.calibration == "npz:cifar10-train.npz[-1000:]"
    assert c.finetune.data.auxiliary == (
        "cifar10=npz:cifar10-train.npz[-6000:-1000] + cifar100=npz:cifar100-train.npz[:5000]"
    )


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("mnist", r"'mnist': write ID\[,OOD\].* with ID cifar10 or cifar100"),
        ("cifar10,small,wrn", "each once"),
        ("cifar10,seed=3", "each once"),
        ("cifar10,cifar10", "'cifar10' is no OOD set .*cifar100, tinyimagenet"),
        ("cifar10,test=iSUN", "'iSUN' is no OOD set"),
    ],
)
def test_recipe_arguments_that_make_no_sense(monkeypatch, argument, says):
    with pytest.raises(ValueError, match=says):
        recipe(monkeypatch, argument)
