"""Command lines: help that does not wait, and one line and a code for every way to end."""

import subprocess
import sys

import pytest
from small_run import ROOT

from ood_jax import command

FLAGS = {
    "main": "--workdir",
    "score": "--ood",
    "predict": "--images",
    "report": "--projection",
    "clp": "--inside",
    "norms": "--augmentations",
    "sweep": "--seeds",
    "benchmark": "--outliers",
    "prepare": "--labels",
}


@pytest.mark.parametrize("name", FLAGS)
def test_help_does_not_wait_for_jax(name):
    script = (
        "import sys\n"
        f"from ood_jax import {name}\n"
        f"try: {name}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'jax', 'orbax', 'matplotlib', 'pyarrow', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(' '.join(slow) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"--help imports {done.stderr}"
    assert f"python -m ood_jax.{name}" in done.stdout and FLAGS[name] in done.stdout


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a\n  b"), 2, "error: a b"),
        (OSError("disk full"), 1, "error: disk full"),
        (KeyboardInterrupt(), 130, "SIGINT: stopped; all is lost"),
    ],
)
def test_every_end_has_a_code_and_a_line(error, code, line, capsys):
    assert command.answered(raising(error), stopped="all is lost") == code
    assert capsys.readouterr().err == line + "\n"
    assert command.answered(lambda: None, stopped="") == 0
