"""Several processes are one: the same parameters and results, in any mixture over a run."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import assert_close, environment, final_state, write_recipe
from test_stages import RECIPE

from ood_jax.config import stages_of
from ood_jax.logs import read_metrics
from ood_jax.recipe import load

STEPS = 20
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=1",
    "--config.train.keep_last=9",
)
SECONDS = 240
COUNTS = {"one": 1, "two": 2, "four": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def recipe(folder):
    return write_recipe(folder / "data", "tiny_config")


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _train(folder, recipe, workdir, count, during=lambda processes: None, flags=()):
    """`count` processes with one device each; [(exit code, stdout, stderr), ...].

    flags: beside FLAGS.
    """
    command = [sys.executable, "-m", "ood_jax.main", f"--config={recipe}", *FLAGS, *flags]
    command += [f"--workdir={workdir}"]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{_free_port()}", f"--processes={count}"]
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(count):
            own = [f"--process={i}"] if count > 1 else []
            process = subprocess.Popen(
                [*command, *own],
                env=environment(folder / "cache"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        during(processes)
        said = [process.communicate(timeout=SECONDS) for process in processes]
        return [(p.returncode, *out) for p, out in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def one(folder, recipe):
    """The workdir of a finished run of one process."""
    ((code, _, err),) = _train(folder, recipe, folder / "one", 1)
    assert code == 0, err
    return folder / "one"


def _assert_same(recipe, found, expected):
    config = load([f"--config={recipe}", *FLAGS])
    a, b = final_state(config, found), final_state(config, expected)
    assert int(a.step) == int(b.step) == STEPS
    assert_close(a.params, b.params, 1e-6)
    assert_close(a.teacher, b.teacher, 1e-6)
    assert_close(a.memory, b.memory, 1e-6)
    assert [row["step"] for row in read_metrics(found)] == list(range(1, STEPS + 1))
    results = [json.loads((w / "results.json").read_text()) for w in (found, expected)]
    for name, by_scorer in results[0]["sets"].items():
        assert by_scorer["exp_cosine"] == pytest.approx(
            results[1]["sets"][name]["exp_cosine"], abs=1e-6
        )
    assert results[0]["in_distribution"] == pytest.approx(results[1]["in_distribution"], abs=1e-6)


@pytest.mark.parametrize("name", ["two", pytest.param("four", marks=pytest.mark.slow)])
def test_several_processes_are_one(folder, recipe, one, name):
    """They train, save, score: the same parameters and results."""
    first, *others = ended = _train(folder, recipe, folder / name, COUNTS[name])
    assert {code for code, _, _ in ended} == {0}, ended
    assert f"{COUNTS[name]} cpu device(s)" in first[2]
    assert {said for _, _, said in others} == {""}  # the first speaks for all
    _assert_same(recipe, folder / name, one)


@pytest.mark.slow
def test_two_processes_with_half_of_the_state_each_are_one(folder, recipe, one, tmp_path):
    """No process has the whole network, though its kNN accuracy is asked for on the way."""
    flags = ("--config.mesh.rules=.*=fsdp", "--config.train.knn_every=1")
    ended = _train(folder, recipe, tmp_path / "w", 2, flags=flags)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert any("knn_accuracy" in row for row in read_metrics(tmp_path / "w"))
    _assert_same(recipe, tmp_path / "w", one)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_to_one_saves_one_step_in_all(folder, recipe, tmp_path, victim):
    """The preemption notice reaches one host; all stop after the same step, which is saved."""
    flags = ("--config.train.steps=100000", "--config.train.checkpoint_every=100000")

    def stop(processes):
        _wait_for_step(processes, tmp_path)
        processes[victim].send_signal(signal.SIGTERM)

    ended = _train(folder, recipe, tmp_path, 2, stop, flags)
    assert [code for code, _, _ in ended] == [143, 143], ended
    lines = {err.splitlines()[-1] for _, _, err in ended}
    assert len(lines) == 1 and "SIGTERM: stopped after step" in lines.pop()
    (saved,) = (int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == read_metrics(tmp_path)[-1]["step"] < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_host_ends_the_others(folder, recipe, tmp_path, victim, number):
    """Within JAX's heartbeat of 100 s, or at once where the connection breaks; and says so."""
    other, seconds = 1 - victim, []

    def lose(processes):
        _wait_for_step(processes, tmp_path)
        processes[victim].send_signal(number)
        began = time.monotonic()
        processes[other].wait(timeout=SECONDS)
        seconds.append(time.monotonic() - began)
        processes[victim].kill()

    ended = _train(folder, recipe, tmp_path, 2, lose, ("--config.train.steps=100000",))
    code, _, said = ended[other]
    print(f"ended {seconds[0]:.1f} s after, exit code {code}: {said[:300]}")
    assert seconds[0] < 180
    assert code in (1, -signal.SIGABRT), said
    assert "another process of this run is gone" in said or (
        "the JAX distributed service detected fatal errors" in said
    )


def _wait_for_step(processes, workdir):
    limit = time.monotonic() + SECONDS
    while not read_metrics(workdir) and time.monotonic() < limit:
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("one", 2), ("two", 1), ("two", 4), ("four", 2)])
def test_another_number_of_processes_goes_on(folder, recipe, one, tmp_path, before, after):
    if not (folder / before).is_dir():
        ended = _train(folder, recipe, folder / before, COUNTS[before])
        assert {code for code, _, _ in ended} == {0}, ended
    workdir = tmp_path / "w"
    shutil.copytree(folder / before / "checkpoints" / "12", workdir / "checkpoints" / "12")
    log = (folder / before / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(log[:13]))  # step 13 was lost
    ended = _train(folder, recipe, workdir, after)
    assert [code for code, _, _ in ended] == [0] * after, ended
    _assert_same(recipe, workdir, one)


@pytest.mark.slow
def test_stages_of_two_processes_are_those_of_one(folder, tmp_path):
    """Negatives and BatchNorm cross from one to the other, and both read the stage before."""
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    recipe = f"{path}:{tmp_path}"
    for count in (1, 2):
        ended = _train(folder, recipe, tmp_path / str(count), count)
        assert [code for code, _, _ in ended] == [0] * count, ended
    for stage, config in stages_of(load([f"--config={recipe}", *FLAGS])).items():
        with config.unlocked():
            config.model.weights = ""
        one, two = (final_state(config, tmp_path / count / stage) for count in ("1", "2"))
        assert int(one.step) == int(two.step) == STEPS
        # BatchNorm over images that an untrained network hardly tells apart magnifies rounding.
        assert_close(two.params, one.params, 2e-4)
        assert_close(two.stats, one.stats, 2e-4)
        losses = [[row["loss"] for row in read_metrics(tmp_path / n / stage)] for n in ("1", "2")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = [json.loads((tmp_path / n / "results.json").read_text())["sets"] for n in ("1", "2")]
    for name, by_scorer in found[0].items():
        other = found[1][name]["mahalanobis"]
        assert by_scorer["mahalanobis"]["auroc"] == pytest.approx(other["auroc"], abs=0.02)


def test_some_devices_of_several_processes_are_refused(folder, recipe, tmp_path, monkeypatch):
    from ood_jax import train

    monkeypatch.setattr(train.jax, "process_count", lambda: 2)
    config = load([f"--config={recipe}", "--config.train.devices=1"])
    with pytest.raises(ValueError, match="several processes use all their 2 devices; set it to 0"):
        train.prepare(config)
