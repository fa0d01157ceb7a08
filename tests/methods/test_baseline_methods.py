"""LogitNorm and outlier exposure: what each adds up, that it learns, one device as two."""

import jax
import numpy as np
import pytest
from small_run import small_config

from ood_jax import sharding
from ood_jax.data.pipeline import train_batches
from ood_jax.train import init_state, jitted_step, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

METHODS = ("logit_norm", "outlier_exposure")
WITH_OUTLIERS = ("outlier_exposure",)
CASES = [(method, heads) for method in METHODS for heads in (1, 2)]


def config_of(folder, method, heads=1, devices=1):
    """25 images of three classes, each a brightness of its own; outliers are striped."""
    c = small_config(folder, method)
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    noise = rng.integers(0, 30, (24, 16, 16, 3))
    images = (60 * labels + 40)[:, None, None, None] + noise
    striped = 200 * (np.arange(16) % 2)[:, None] + noise[..., 0]
    for name, pixels in (("train", images), ("auxiliary", np.repeat(striped[..., None], 3, -1))):
        np.savez(folder / f"{name}.npz", images=pixels.astype(np.uint8), labels=labels)
    c.data.auxiliary = f"npz:{folder}/auxiliary.npz" if method in WITH_OUTLIERS else ""
    c.model.name, c.model.width, c.model.depth, c.model.stride = "resnet", 4, 10, 2
    c.head.name, c.head.outputs, c.head.second_outputs = "linear", 3, 3 * (heads - 1)
    c.optim.warmup_epochs = c.optim.freeze_epochs = 0.0
    c.optim.lr, c.optim.lr_batch = 0.02, 0
    c.train.batch, c.train.steps, c.train.devices = 24, 30, devices
    return c


def first_batch(run):
    batches = train_batches(run.train, run.auxiliary, batch=24, size=16, seed=0)
    return {k: v for k, v in next(batches).items() if k != "skipped"}


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def picked(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def expected_loss(method, run, batch, forward):
    """In float64, from what the network says; one term a classifier."""
    labels = np.asarray(batch["label"])
    if method == "logit_norm":
        heads = forward(batch["image"])
        units = [h / np.linalg.norm(np.float64(h), axis=1, keepdims=True) for h in heads]
        return sum(picked(unit / run.config.method.temperature, labels) for unit in units)
    both = np.asarray(batch["both"])
    heads = forward(both.reshape(-1, *both.shape[2:]))
    classes = sum(picked(h[::2], labels) for h in heads)
    uniform = sum(-log_softmax(h[1::2]).mean() for h in heads)
    return classes + run.config.method.outlier_weight * uniform


@pytest.mark.parametrize(("method", "heads"), CASES)
def test_loss_is_what_the_paper_adds_up(method, heads, tmp_path):
    run = prepare(config_of(tmp_path, method, heads))
    state = init_state(run)
    key = jax.random.key(0)
    batch = jax.jit(run.method.views)(first_batch(run), key)

    @jax.jit
    def apply(images):
        outputs, _ = run.net.apply(state.params, state.stats, images, train=True, key=key)
        return [outputs.logits, outputs.second_logits][:heads]

    loss = jax.jit(run.method.updates[0].loss)
    value, aux = loss(state.params, state, batch, key)
    assert value == pytest.approx(expected_loss(method, run, batch, apply), rel=1e-4)
    assert ("second_accuracy" in aux.metrics) == (heads == 2)


@pytest.mark.parametrize(("method", "heads"), CASES)
def test_it_learns(method, heads, tmp_path):
    run = prepare(config_of(tmp_path, method, heads))
    state, step = init_state(run), jitted_step(run)
    host = first_batch(run)
    rows = []
    for _ in range(30):
        state, metrics = step(state, sharding.global_batch(run.mesh, host))
        rows.append(jax.device_get(metrics))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    right = [rows[-1][name] for name in ("accuracy", "second_accuracy")[:heads]]
    assert min(right) > 0.9
    if method == "outlier_exposure":
        floor = heads * np.log(3)  # of the outliers' loss: uniform
        assert rows[-1]["loss_outliers"] == pytest.approx(floor, abs=0.15 * heads)
        assert rows[-1]["loss_class"] < 0.3 * heads


@pytest.mark.parametrize("method", METHODS)
def test_one_device_is_two(method, tmp_path):
    found = []
    for devices in (1, 2):
        config = config_of(tmp_path, method, 2, devices)
        config.optim.name = "sgd"
        run = prepare(config)
        batch = sharding.global_batch(run.mesh, first_batch(run))
        state, metrics = jitted_step(run)(init_state(run), batch)
        found.append(jax.device_get((state.params, state.stats, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *found)


MISTAKES = [
    ("logit_norm", "method.temperature", 0.0, r"method.temperature = 0.0: tau is a number above 0"),
    ("logit_norm", "method.temperature", float("nan"), "temperature = nan"),
    ("logit_norm", "head.outputs", 1, r"logit_norm needs classes: .* head.outputs 1"),
    ("outlier_exposure", "data.auxiliary", "", r"data.auxiliary = '': outlier_exposure learns"),
    ("outlier_exposure", "method.outlier_weight", -0.5, r"outlier_weight = -0.5: lambda is 0"),
    ("outlier_exposure", "head.name", "none", r"outlier_exposure needs classes"),
]


@pytest.mark.parametrize(("method", "key", "value", "says"), MISTAKES)
def test_mistakes_cost_no_compute(method, key, value, says, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "place", lambda *a: pytest.fail("computed"))
    config = config_of(tmp_path, method)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=says) as error:
        prepare(config)
    assert "\n" not in str(error.value)
