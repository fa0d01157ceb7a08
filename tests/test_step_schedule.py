"""The schedule "step": against NumPy, to the step; resumed; checkpoints without its keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import final_state, tiny_config

from ood_jax import loop, optim
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.config import base
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

NEW = ("schedule", "drops", "drop")


def _config(steps, warmup=0.0, **keys):
    c = base()
    c.optim.lr, c.optim.lr_batch, c.optim.schedule = 0.1, 0, "step"
    c.train.steps, c.train.steps_per_epoch, c.optim.warmup_epochs = steps, 10.0, warmup
    c.optim.update(keys)
    return c


def _rates(config, count):
    return np.asarray(jax.jit(jax.vmap(optim.schedules(config).learning_rate))(jnp.arange(count)))


def _expected(step, peak, boundaries, divisor, warmup):
    if step < warmup:
        return peak * step / (warmup - 1)
    for boundary in boundaries:
        if step >= boundary:
            peak = peak / divisor
    return peak


@pytest.mark.parametrize(
    ("steps", "drops", "boundaries", "divisor", "warmup"),
    [
        (40, (0.5, 0.75), (20, 30), 10.0, 0),
        (40, (0.5, 0.75), (20, 30), 10.0, 10),
        (41, (0.3, 0.6, 0.8), (12, 25, 33), 5.0, 20),  # 12.3, 24.6 and 32.8; the first in warm-up
        (100, (0.07, 0.29), (7, 29), 0.5, 0),  # 100 x .07 and x .29 are no whole numbers in binary
        (40, (), (), 10.0, 0),
        (40, (), (), 10.0, 10),
    ],
)
def test_rates_against_numpy(steps, drops, boundaries, divisor, warmup):
    config = _config(steps, warmup / 10, drops=drops, drop=divisor)
    expected = [_expected(step, 0.1, boundaries, divisor, warmup) for step in range(steps + 3)]
    np.testing.assert_allclose(_rates(config, steps + 3), expected, rtol=1e-6)


def test_the_peak_is_scaled_and_the_weight_decay_keeps_its_cosine():
    config = _config(40, lr_batch=64, weight_decay=0.4, weight_decay_end=0.2)
    config.train.batch = 128
    assert _rates(config, 40)[[19, 20, 30]] == pytest.approx([0.2, 0.02, 0.002])
    decay = optim.schedules(config).weight_decay
    assert [float(decay(step)) for step in (0, 20, 40)] == pytest.approx([0.4, 0.3, 0.2])


def test_cosine_is_the_default_and_heeds_no_drop():
    config = _config(40, schedule=base().optim.schedule, min_lr=0.0)
    share = np.arange(40) / 40
    np.testing.assert_allclose(_rates(config, 40), 0.05 * (1 + np.cos(np.pi * share)), atol=1e-8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": "linear"}, "optim.schedule 'linear': use cosine or step"),
        ({"drops": (0.75, 0.5)}, r"optim.drops \(0.75, 0.5\): .* ascending, such as \(0.5, 0.75\)"),
        ({"drops": (0.5, 0.5)}, "ascending"),
        ({"drops": (0.0,)}, "between 0 and 1"),
        ({"drops": (0.5, 1.0)}, "between 0 and 1"),
        ({"drops": (150.0, 225.0)}, "shares of the run"),
        ({"drops": (float("nan"),)}, "between 0 and 1"),
        ({"drops": ("half",)}, "between 0 and 1"),
        ({"drop": 0.0}, "optim.drop 0: use a number above 0, such as 10"),
        ({"drop": -1.0}, "optim.drop -1"),
        ({"drop": float("inf")}, "optim.drop inf"),
    ],
)
def test_mistakes(keys, message):
    with pytest.raises(ValueError, match=message) as caught:
        optim.schedules(_config(40, **keys))
    assert "\n" not in str(caught.value)


class Crash(Exception):
    """Nothing more is saved."""


def _run(folder, **keys):
    config = tiny_config(folder, "supervised")
    config.data.auxiliary, config.head.name, config.head.outputs = "", "linear", 3
    config.optim.name, config.optim.lr, config.optim.lr_batch = "sgd", 0.1, 0
    config.optim.warmup_epochs, config.optim.freeze_epochs = 0.0, 0.0
    config.train.checkpoint_every, config.train.keep_last, config.train.devices = 1, 9, 1
    config.optim.update(keys)
    return prepare(config)


def _moved(workdir, first, last):
    """How far the parameters went from one step to another."""
    a, b = (restore_for_scoring(str(workdir), step).params for step in (first, last))
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


@pytest.mark.slow
def test_a_resumed_run_drops_where_the_whole_one_does(tmp_path, monkeypatch):
    """Six steps, from the fourth on at nearly no rate; stopped after the second."""
    step = {"schedule": "step", "drops": (0.5,), "drop": 1e6, "momentum": 0.0}
    run = _run(tmp_path / "data", **step)
    whole = jax.device_get(loop.train(run, str(tmp_path / "whole")))
    assert _moved(tmp_path / "whole", 3, 6) < 1e-5 < 1e-3 < _moved(tmp_path / "whole", 2, 3)
    batches = loop.train_batches

    def two(*sources, **options):
        yield from itertools.islice(batches(*sources, **options), 2)
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "train_batches", two)
        loop.train(run, str(tmp_path / "w"))
    loop.train(run, str(tmp_path / "w"))
    found = final_state(run.config, tmp_path / "w")
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    with pytest.raises(ValueError, match=r"optim\.drops = "):
        loop.train(_run(tmp_path / "data", **step | {"drops": (0.9,)}), str(tmp_path / "w"))


def test_a_run_from_before_these_keys_goes_on_and_is_scored(tmp_path):
    run = _run(tmp_path / "data")
    old = run.config.copy_and_resolve_references()
    with old.unlocked():
        for key in NEW:
            del old.optim[key]
    checkpoints = Checkpoints(str(tmp_path / "w"), keep_last=2)
    checkpoints.save(init_state(run), old)
    checkpoints.close()
    restored = restore_for_scoring(str(tmp_path / "w"))
    assert [restored.config.optim[key] for key in NEW] == [base().optim[key] for key in NEW]
    other = _run(tmp_path / "data", schedule="step")
    with pytest.raises(ValueError, match=r"optim\.schedule = 'cosine' there, 'step' here"):
        loop.train(other, str(tmp_path / "w"))
    assert int(loop.train(run, str(tmp_path / "w")).step) == 6
