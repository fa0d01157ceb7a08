"""Runs the main job over recipes, settings and seeds, and gathers one table.

python -m ood_jax.sweep --config=FILE[:ARGUMENT] [--config.key=value ...] --workdir=ROOT \\
    --seeds=0,1,2 [--set=key=a,b] [--set=...] [--list] [--jobs=1]

--config and --set may be repeated: every recipe is run with every combination of values and every
seed, each in a folder of its own under ROOT. Finished runs are skipped, so the same command goes on
after an interruption and gathers again: ROOT/sweep.json, ROOT/sweep.md and a table on screen.
A key of one stage is --set=STAGE.key=...
Values with commas: --set='key=["a,b", "c"]', a JSON list.
"""

import argparse
import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from etils import epath

from ood_jax import command as commands
from ood_jax.atomic import check_writable
from ood_jax.gather import gather, markdown, show, tables, write
from ood_jax.place import is_remote, make_folder, place
from ood_jax.runs import Cases, Run, as_text, expand, finished, whole
from ood_jax.untrusted import parse_json

__all__ = ["Run", "command", "expand", "gather", "launch", "main"]


def command(run: Run, python: str = sys.executable) -> list[str]:
    """The command line of one run."""
    return [python, "-m", "ood_jax.main", *run.arguments]


def launch(runs: Sequence[Run], jobs: int = 1) -> tuple[list[Run], int]:
    """Runs each as a process of its own, `jobs` at a time -> (failed runs, signal or 0).

    One at a time, a run talks to this terminal; several at once, to WORKDIR/log.txt, or where that
    is on object storage to ./sweep-logs/RUN/SEED/log.txt. SIGINT and
    SIGTERM are passed on, and no further run begins.
    """
    waiting, failed = list(runs), []
    live: dict[subprocess.Popen, Run] = {}
    with _signals(live) as received:
        while live or (waiting and not received):
            while waiting and len(live) < jobs and not received:
                run = waiting.pop(0)
                _say(f"run {len(runs) - len(waiting)} of {len(runs)}: {run.row} seed {run.seed}")
                process = _start(run, to_file=jobs > 1)
                live[process] = run
                if received:  # between the fork and the line above
                    process.send_signal(received[0])
            for process in [p for p in live if p.poll() is not None]:
                run = live.pop(process)
                if process.returncode and not received:
                    failed.append(run)
                    _say(f"failed, exit code {process.returncode}: {shlex.join(command(run))}")
            time.sleep(0.1)
    return failed, received[0] if received else 0


def _start(run: Run, to_file: bool) -> subprocess.Popen:
    # A group of its own: a Ctrl-C reaches it once, through `launch`, not twice.
    if not to_file:
        return subprocess.Popen(command(run), process_group=0)
    folder = run.workdir
    if is_remote(folder):  # where nothing can be appended to
        folder = place("sweep-logs") / folder.parent.name / folder.name
    make_folder(folder)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        return subprocess.Popen(command(run), process_group=0, stdout=log, stderr=log)


@contextlib.contextmanager
def _signals(live: dict[subprocess.Popen, Run]) -> Iterator[list[int]]:
    """Passes SIGINT and SIGTERM on to `live`; yields the list of those received."""
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for process in list(live):
            process.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)


def parse_setting(text: str) -> tuple[str, list[str]]:
    """`key=a,b` or `key=["a,b", "c"]` -> (key, values as on a command line).

    Raises:
      ValueError: no "=", no value, or a "[" that does not open a JSON list.
    """
    key, equals, values = text.partition("=")
    key = re.sub(r"^(--)?config\.", "", key)
    if not equals or not key or not values:
        raise ValueError(f"--set={text}: write --set=KEY=VALUE,VALUE, such as --set=optim.lr=.1,.2")
    if not values.startswith("["):
        return key, values.split(",")
    try:
        return key, [as_text(value) for value in parse_json(values)]
    except ValueError as error:
        raise ValueError(
            f'--set={text}: not a JSON list ({error}); write \'{key}=["a,b", "c"]\''
        ) from None


def drive(
    flags: argparse.ArgumentParser,
    argv: Sequence[str],
    cases: Callable[[argparse.Namespace], Cases],
    finish: Callable[[argparse.Namespace, list[Run]], epath.Path],
) -> int:
    """A command over many runs: runs or lists what is not finished, then gathers.

    Args:
      flags: the command's own; those of a sweep are added. cases: options -> see `runs.expand`.
        finish: writes and shows what there is, and returns the file that holds it.

    Returns:
      The exit code: 1 = a run failed, else as `command.answered` has it.
    """
    code = 0

    def act() -> None:
        nonlocal code
        options, runs = _expanded(flags, argv, cases)
        missing = [run for run in runs if finished(run) is None]
        _say(f"{len(runs)} runs, {len(runs) - len(missing)} finished already")
        if options.list:
            for run in missing:
                print(shlex.join(command(run, "python")))
            return
        check_writable(options.workdir)
        failed, stopped = launch(missing, options.jobs)
        path = finish(options, runs)
        left = [run for run in runs if finished(run) is None]
        _say(f"{len(runs) - len(left)} of {len(runs)} runs finished; {path}")
        for run in failed:
            _say(f"failed: {run.workdir}; the same command tries again")
        for run in [] if stopped else left:
            if run not in failed:
                _say(f"ended without results of its config: {run.workdir}")
        code = 128 + stopped if stopped else int(bool(left))

    return commands.answered(act, stopped="the same command goes on") or code


def _expanded(
    flags: argparse.ArgumentParser,
    argv: Sequence[str],
    cases: Callable[[argparse.Namespace], Cases],
) -> tuple[argparse.Namespace, list[Run]]:
    add = flags.add_argument
    add("--config", action="append", required=True, help="recipe, FILE[:ARGUMENT]")
    add("--workdir", required=True, help="folder of all runs")
    add("--seeds", default="0", help="such as 0,1,2")
    add("--set", action="append", default=[], help="KEY=VALUE,VALUE", dest="settings")
    add("--list", action="store_true", help="print the commands, one a line, and run nothing")
    add("--jobs", type=int, default=1, help="runs at the same time")
    options, overrides = flags.parse_known_args(argv)
    for other in overrides:
        if not re.match(r"--?(no)?config\.", other):
            raise ValueError(f"unknown flag {other}: see --help; keys are --config.KEY=VALUE")
    if options.jobs < 1:
        raise ValueError(f"--jobs={options.jobs}: use 1 or more")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds={options.seeds}: write whole numbers, as in 0,1,2") from None
    parsed = [parse_setting(text) for text in options.settings]
    if len(dict(parsed)) < len(parsed):
        raise ValueError("a key has two --set flags: write all its values in one")
    settings = dict(parsed)
    made = cases(options)
    return options, expand(options.config, overrides, seeds, settings, options.workdir, made)


def _finish(options: argparse.Namespace, runs: list[Run]) -> epath.Path:
    gathered = gather(runs)
    shown = tables(gathered)
    path = write(gathered, markdown(shown), options.workdir, "sweep")
    show(shown)
    return path


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 1 = a run failed, 2 = the command makes no sense."""
    flags = commands.parser("ood_jax.sweep", __doc__)
    return drive(flags, argv, lambda options: whole, _finish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
