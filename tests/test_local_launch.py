"""launch/local.sh: output, exit codes and signals of several processes on one machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "local.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

HEAD = """
import os, signal, sys, time
flags = dict(a.removeprefix("--").split("=") for a in sys.argv[1:] if "=" in a)
me, count = int(flags["process"]), int(flags["processes"])
"""


# Tests that run in the background inherit an ignored SIGINT, which bash cannot trap. (Popen's
# preexec_fn would fork, which JAX's threads do not bear.)
TRAPPABLE = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " os.execv(sys.argv[1], sys.argv[1:])",
]


@pytest.fixture
def start(tmp_path):
    """start(count, code, *arguments) -> the running script, its output piped."""

    with contextlib.ExitStack() as stack:

        def begin(count, code, *arguments):
            program = tmp_path / "program.py"
            program.write_text(HEAD + code)
            process = subprocess.Popen(
                [*TRAPPABLE, str(SCRIPT), str(count), str(program), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHON": sys.executable},
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            return process

        yield begin


def test_a_failure_before_all_have_begun_is_seen(start):
    process = start(9, "sys.exit(5) if me == 0 else time.sleep(60)\n")
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 5
    assert time.monotonic() - began < 9


def test_each_process_knows_its_place_and_signs_its_lines(start):
    code = (
        "print(count, flags['coordinator'], flags['x'], os.environ['GLIBC_TUNABLES'])\n"
        "print('said on stderr', file=sys.stderr)\n"
    )
    process = start(3, code, "--x=a b")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = sorted(out.splitlines())
    assert [line[:3] for line in lines] == ["[0]", "[1]", "[2]"]
    (rest,) = {line[4:] for line in lines}
    assert rest.startswith("3 127.0.0.1:") and rest.endswith("a b glibc.malloc.hugetlb=1")
    assert sorted(err.splitlines()) == [f"[{i}] said on stderr" for i in range(3)]


def test_the_first_failure_stops_the_others_and_is_the_exit_code(start):
    process = start(3, "time.sleep(0.3 if me == 1 else 60)\nsys.exit(7)\n")
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 7
    assert time.monotonic() - began < 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_once(start, number):
    code = (
        "def stop(number, frame):\n"
        "    print('got', number, flush=True)\n"
        "    time.sleep(0.3)\n"
        "    sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = start(2, code)
    assert sorted([process.stdout.readline(), process.stdout.readline()]) == [
        "[0] ready\n",
        "[1] ready\n",
    ]
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert sorted(out.splitlines()) == [f"[0] got {int(number)}", f"[1] got {int(number)}"]
    assert process.returncode == 128 + number


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "x.py"], ["two", "x.py"]])
def test_usage(arguments):
    done = subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_jax_sums_over_two_processes(start):
    code = (
        "import jax\n"
        "jax.distributed.initialize(flags['coordinator'], count, me)\n"
        "from jax.experimental import multihost_utils\n"
        "everyone = multihost_utils.process_allgather(jax.numpy.ones(1) * me)\n"
        "print(len(jax.devices()), everyone.sum())\n"
    )
    process = start(2, code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    # Gloo speaks too, and at times in pieces.
    said = ("Gloo", "peer ranks")
    printed = [line for line in out.splitlines() if not any(word in line for word in said)]
    devices = 2 * len(jax.local_devices())
    assert sorted(printed) == [f"[0] {devices} 1.0", f"[1] {devices} 1.0"]
