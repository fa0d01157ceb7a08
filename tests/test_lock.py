"""Two runs on one workdir: the second is refused; a lock dies with its process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from small_run import environment, write_recipe

from ood_jax import lock, loop, score, stages
from ood_jax.main import main

HOLD = """
import sys
from ood_jax.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment(tmp_path / "cache"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_kill_9_frees_it(tmp_path):
    with _holder(tmp_path) as process:
        said = (
            rf"^--workdir={re.escape(str(tmp_path))} is in use by another run \(process"
            rf" {process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-.*\): wait"
        )
        with pytest.raises(ValueError, match=said) as error, lock.locked(str(tmp_path)):
            pytest.fail("two hold it")
        assert "\n" not in str(error.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock.locked(str(tmp_path)):
            assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_it_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock.locked(str(tmp_path)):
        raise KeyboardInterrupt
    with lock.locked(str(tmp_path)), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        lock.locked(str(tmp_path)).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_holder_that_is_writing_its_name(text, tmp_path):
    with lock.locked(str(tmp_path)):
        (tmp_path / lock.FILE).write_text(text)
        with pytest.raises(ValueError, match="it began just now"):
            lock.locked(str(tmp_path)).__enter__()


def test_object_storage_is_not_locked(monkeypatch):
    monkeypatch.setattr(lock.os, "open", lambda *_: pytest.fail("opened a file"))
    with lock.locked("gs://bucket/run"), lock.locked("gs://bucket/run"):
        pass


def test_the_others_of_one_run_go_with_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.jax, "process_index", lambda: 1)
    monkeypatch.setattr(lock.jax, "process_count", lambda: 2)
    for refused in (0, 1):
        monkeypatch.setattr(lock.multihost_utils, "broadcast_one_to_all", lambda _, r=refused: r)
        if not refused:
            with lock.locked(str(tmp_path)):
                pass
            continue
        with pytest.raises(ValueError, match="what the first process says"):
            lock.locked(str(tmp_path)).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_second_run_neither_trains_nor_scores(tmp_path, capsys, monkeypatch):
    tiny_recipe = write_recipe(tmp_path / "data", "tiny_config")
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(score, "score_run", lambda *_, **__: pytest.fail("scored"))
    with lock.locked(loop.make_workdir(str(tmp_path / "w")).as_posix()):
        assert main([f"--config={tiny_recipe}", f"--workdir={tmp_path / 'w'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --workdir=") and f"(process {os.getpid()} on" in line
