"""The leave-out classifier: its loss on a batch, what it learns, what it refuses."""

import jax
import numpy as np
import pytest
from small_run import tiny_config

from ood_jax import leave_out, sharding
from ood_jax.data.pipeline import train_batches
from ood_jax.losses.classify import cross_entropy
from ood_jax.train import init_state, jitted_step, prepare


def config_of(folder, second=0):
    """Four classes, each a colour of its own; the first of two parts is left out: 1 and 3."""
    c = tiny_config(folder, "leave_out")
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 4
    colours = np.array([[200, 0, 0], [120, 180, 0], [0, 0, 200], [180, 200, 60]])
    images = colours[labels][:, None, None] + rng.integers(0, 50, (48, 16, 16, 3))
    np.savez(folder / "all.npz", images=images.astype(np.uint8), labels=labels)
    c.data.train = c.data.test = f"npz:{folder}/all.npz"
    c.head.name, c.head.second_outputs = "linear", second
    c.method.classes, c.method.splits = 4, 2
    c.update_from_flattened_dict(leave_out.cut(c))
    c.optim.freeze_epochs, c.optim.lr, c.optim.lr_batch = 0.0, 0.002, 0
    c.train.batch, c.train.steps = 24, 40
    c.method.crop_scale = (0.9, 1.0)
    return c


def batches(run):
    found = train_batches(run.train, batch=24, size=16, seed=0, auxiliary=run.auxiliary)
    while True:
        host = {k: v for k, v in next(found).items() if k != "skipped"}
        yield sharding.global_batch(run.mesh, host)


@pytest.mark.parametrize("second", [0, 2])
def test_loss_is_as_the_paper_writes_it(second, tmp_path):
    config = config_of(tmp_path, second)
    config.method.margin, config.method.entropy_weight = 0.6, 0.5
    run = prepare(config)
    state = init_state(run)
    batch = jax.jit(run.method.views)(next(batches(run)), jax.random.key(1))
    ((update,), key) = (run.method.updates, jax.random.key(2))
    loss = jax.jit(lambda b: update.loss(state.params, state, b, key)[0])
    both = batch["both"].reshape(-1, *batch["both"].shape[2:])
    seen = jax.jit(lambda x: run.net.apply(state.params, state.stats, x, train=True, key=key)[0])
    outputs = seen(both)
    expected = 0.0
    for logits in (outputs.logits, outputs.second_logits)[: 1 + bool(second)]:
        inside, outside = logits[0::2], logits[1::2]
        hinge = 0.6 + entropy(inside).mean() - entropy(outside).mean()
        expected += cross_entropy(inside, batch["label"], label_smoothing=0.0).mean()
        expected += 0.5 * max(hinge, 0)
        assert hinge > 0
    np.testing.assert_allclose(loss(batch), expected, rtol=1e-5)


def entropy(logits):
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    return -(p * np.log(p)).sum(1)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_left_out_images_end_less_certain(weight, tmp_path):
    """With the term they do, though their colours lie nearer one class; without it they do not."""
    config = config_of(tmp_path)
    config.method.entropy_weight = weight
    run = prepare(config)
    state, step, feed = init_state(run), jitted_step(run), batches(run)
    for _ in range(40):
        state, metrics = step(state, next(feed))
    assert metrics["accuracy"] == 1
    assert metrics["margin_entropy"] < 0.15 if weight else metrics["margin_entropy"] > 0.3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method.margin": 0.7}, r"margin = 0.7: .*less than ln 2 = 0.6931"),
        ({"method.margin": -0.1}, "margin = -0.1"),
        ({"method.entropy_weight": -1.0}, "entropy_weight = -1.0"),
        ({"head.second_outputs": 4}, "second_outputs = 4: use 2"),
        ({"data.auxiliary": ""}, "data.auxiliary = ''"),
        ({"head.name": "none"}, "needs classes"),
        ({"method.split": 1}, "split 1 of 2 of 4 classes needs"),
        ({"train.accumulate": 2}, "needs the whole batch at once"),
    ],
)
def test_settings_that_make_no_sense(settings, says, tmp_path):
    config = config_of(tmp_path)
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=says):
        prepare(config)
