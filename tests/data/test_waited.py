"""Batches that do not come in time end the run; those that do are the same."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from small_run import environment

from ood_jax.data.waited import Stalled, in_time


@pytest.mark.parametrize("seconds", [0, 30])
def test_the_same_batches(seconds):
    assert list(in_time(iter(range(5)), seconds)) == [0, 1, 2, 3, 4]


def test_none_is_read_before_it_is_asked_for():
    read = []
    batches = in_time((read.append(i) or i for i in range(9)), 30)
    assert [next(batches), next(batches)] == read == [0, 1]


def test_its_error_is_ours():
    def broken():
        yield 1
        raise ValueError("none of the 3 images can be read")

    batches = in_time(broken(), 30)
    assert next(batches) == 1
    with pytest.raises(ValueError, match="none of the 3"):
        next(batches)


def test_one_that_hangs():
    go = threading.Event()

    def hanging():
        yield 1
        go.wait()

    batches = in_time(hanging(), 0.2)
    assert next(batches) == 1
    began = time.monotonic()
    with pytest.raises(Stalled, match=r"no batch of images came in 0\.2 s: .*data\.timeout"):
        next(batches)
    assert time.monotonic() - began < 20
    go.set()


WORKERS = """
import multiprocessing, sys
from ood_jax.data.pipeline import train_batches
from ood_jax.data.sources import open_source
from ood_jax.data.waited import in_time
from ood_jax.main import leave
if __name__ == "__main__":
    source = open_source("folder:" + sys.argv[1])
    feed = train_batches(source, batch=4, size=16, seed=0, workers=2, memory=0)
    next(feed)  # until the workers have started: no limit
    batches = in_time(feed, 45)
    for child in multiprocessing.active_children():
        print(child.pid, flush=True)
    print("running", flush=True)
    sys.stdin.readline()
    try:
        for _ in range(10_000):
            next(batches)
    except OSError as error:
        print(type(error).__name__, error, flush=True)
        leave(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGKILL, "OSError a data worker died ("), (signal.SIGSTOP, "Stalled no batch of")],
)
def test_a_worker_that_is_killed_or_stopped(number, says, tmp_path):
    """The process ends within a minute, though a stopped worker never does."""
    pytest.importorskip("grain")
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(12):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{i}.png")
    (tmp_path / "program.py").write_text(WORKERS)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "images")],
        env=environment(tmp_path / "cache"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        children = [int(line) for line in iter(process.stdout.readline, "running\n")]
        assert len(children) == 2
        try:
            os.kill(children[0], number)
            said, _ = process.communicate("go on\n", timeout=200)
        finally:
            process.kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
    assert said.startswith(says), said
    assert process.returncode == 1
