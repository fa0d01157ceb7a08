"""A run that was stopped, and run again, ends where the uninterrupted one ends, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_run import assert_close, environment, final_state, signalled, tiny_config, write_recipe

from ood_jax import loop
from ood_jax.checkpoint import Checkpoints
from ood_jax.logs import read_metrics
from ood_jax.recipe import load
from ood_jax.train import prepare

pytestmark = pytest.mark.usefixtures("compiled_once")


class Crash(Exception):
    """Nothing is saved: what kill -9 does, without the wait for another process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def _config(folder, devices=1):
    config = tiny_config(folder / "data")
    config.train.devices = devices
    config.train.log_every = 1
    return config


@pytest.fixture(scope="module")
def whole(folder):
    """The uninterrupted run's state at its end, step 6."""
    state = loop.train(prepare(_config(folder)), str(folder / "whole"))
    assert int(state.step) == 6
    return jax.device_get(state)


def _stop_before(monkeypatch, count, stop):
    """From now on `stop()` is called as the batch after `count` more steps is asked for."""
    batches = loop.train_batches

    def some(*sources, **options):
        for i, batch in enumerate(batches(*sources, **options)):
            if i == count:
                stop()
            yield batch

    monkeypatch.setattr(loop, "train_batches", some)


def _crash():
    raise Crash


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stopped_and_crashed_is_uninterrupted(folder, whole, tmp_path, monkeypatch):
    run = prepare(_config(folder))
    with monkeypatch.context() as patch:
        _stop_before(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(loop.Interrupted, match="SIGTERM: stopped after step 3") as stop:
            loop.train(run, str(tmp_path))
    assert stop.value.code == 143
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    assert checkpoints.latest_step() == 3  # saved, though no checkpoint was due
    checkpoints.close()
    with monkeypatch.context() as patch:
        _stop_before(patch, 2, _crash)
        with pytest.raises(Crash):
            loop.train(run, str(tmp_path))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    state = loop.train(run, str(tmp_path))  # from step 4: step 5 is done again
    _equal(jax.device_get(state), whole)
    _equal(final_state(_config(folder), tmp_path), whole)
    rows, expected = read_metrics(tmp_path), read_metrics(folder / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_a_finished_run_is_not_trained_again(folder, whole, monkeypatch):
    monkeypatch.setattr(loop, "_steps", lambda *a: pytest.fail("trained again"))
    _equal(jax.device_get(loop.train(prepare(_config(folder)), str(folder / "whole"))), whole)


def test_a_corrupt_newest_checkpoint_costs_its_steps_alone(folder, whole, tmp_path, capsys):
    shutil.copytree(folder / "whole", tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "6" / "config" / "metadata").write_text("{")
    _equal(jax.device_get(loop.train(prepare(_config(folder)), str(tmp_path))), whole)
    said = capsys.readouterr().err
    assert "step 6 (config/metadata has 1 bytes of" in said and "that of step 4 is used" in said
    _equal(final_state(_config(folder), tmp_path), whole)  # of step 6, saved again
    assert "warning" not in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_another_number_of_devices(folder, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_before(patch, 2, _crash)
        with pytest.raises(Crash):
            loop.train(prepare(_config(folder)), str(tmp_path))
    state = loop.train(prepare(_config(folder, devices=2)), str(tmp_path))
    assert len(state.step.sharding.device_set) == 2
    assert_close(state.params, whole.params, 1e-6)
    assert_close(state.teacher, whole.teacher, 1e-6)
    assert_close(state.memory, whole.memory, 1e-6)


FLAGS = (
    "--config.train.steps=60",
    "--config.train.checkpoint_every=3",
    "--config.train.log_every=1",
)


def _command(recipe, workdir):
    return [
        sys.executable,
        "-m",
        "ood_jax.main",
        f"--config={recipe}",
        f"--workdir={workdir}",
        *FLAGS,
    ]


def _signalled(recipe, workdir, number, after, env):
    """Starts the run, and sends the signal `after` seconds after its first new checkpoint."""
    before = set(workdir.glob("checkpoints/*"))

    def saved():
        return any(path.name.isdecimal() for path in {*workdir.glob("checkpoints/*")} - before)

    return signalled(_command(recipe, workdir), env, saved, number, after)


def _finish(recipe, workdir, env):
    done = subprocess.run(
        _command(recipe, workdir), env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_kill_9_then_sigint_then_the_end(folder, tmp_path):
    """Processes of their own, the killed one's step compiled anew; scored at the end."""
    recipe = write_recipe(folder / "data", "tiny_config")
    env, other = environment(tmp_path / "cache"), environment(tmp_path / "other")
    expected = _finish(recipe, tmp_path / "whole", env)
    workdir, delay = tmp_path / "w", random.uniform(0, 0.5)
    code, output = _signalled(recipe, workdir, signal.SIGKILL, delay, other)
    assert code == -signal.SIGKILL, output
    code, output = _signalled(recipe, workdir, signal.SIGINT, 0, env)
    assert code == 130 and "Traceback" not in output, output
    assert "SIGINT: stopped after step" in output.splitlines()[-1]
    found = _finish(recipe, workdir, env)
    config = load([f"--config={recipe}", *FLAGS])
    message = f"killed {delay:.3f} s after the first checkpoint"
    assert [row["step"] for row in read_metrics(workdir)] == list(range(1, 61)), message
    a, b = (final_state(config, w) for w in (workdir, tmp_path / "whole"))
    assert int(a.step) == 60
    _equal(a, b)
    assert found["sets"] == expected["sets"], message
    assert found["in_distribution"] == expected["in_distribution"], message
