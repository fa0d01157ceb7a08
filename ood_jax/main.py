"""The main job: `python -m ood_jax.main --config=FILE[:ARGUMENT] [--config.key=value ...]
[--workdir=DIR]` trains, checkpoints, extracts features, scores, and prints the OOD table.

Keys, their defaults and units: ood_jax/defaults.py, and DEFAULTS in the file of the method.
The same command in the same workdir goes on where an earlier one stopped. A recipe may train in
several stages, each in WORKDIR/STAGE: --config.STAGE.key=value is of one, without STAGE of all.
Several processes: start each with --coordinator=HOST:PORT --processes=N --process=I (see launch/);
on Cloud TPU, Slurm and Kubernetes --distributed alone finds these out.
"""

import argparse
import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from ood_jax import command, cpu

if TYPE_CHECKING:  # what takes time to import waits until Ctrl-C is caught
    from ml_collections import ConfigDict

GOES_ON = "the same command goes on from the last checkpoint"


def main(argv: list[str]) -> int:
    """Runs the job; returns the exit code.

    0 done, 1 failed on the way (diverged, disk full, data that does not come, another process
    gone), 2 a mistake in what was asked, 128 + N stopped by the signal N: 143 after a SIGTERM or
    preemption notice, when all is saved. Where process 0 is gone, or another
    one silent for 100 s, JAX ends the rest with code 134 and its message.
    """
    arguments, rest = _parser().parse_known_args(argv)
    try:
        from ood_jax.recipe import load

        strangers = [a for a in rest if not a.lstrip("-").startswith(("config", "noconfig"))]
        if strangers:
            raise ValueError(
                f"unknown argument {strangers[0]!r}; config keys are --config.KEY=VALUE"
            )
        config = load(rest)
        return _run(config, arguments)
    except ValueError as error:
        return _failed(error, 2)
    except OSError as error:
        return _failed(f"{error}; {GOES_ON}", 1)
    except RuntimeError as error:
        if not _lost(error):
            raise
        return _failed(f"another process of this run is gone ({error}); {GOES_ON}", 1)
    except KeyboardInterrupt:
        print(f"SIGINT: stopped; {GOES_ON}", file=sys.stderr)
        return 128 + signal.SIGINT


def _lost(error: RuntimeError) -> bool:
    """Did `error` come of a collective, of several processes, that one of them left?"""
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1


def leave(code: int) -> NoReturn:
    """Ends the process with `code`; after a failure at once.

    The interpreter else waits at its end for threads that hang on a disk, and JAX for processes
    that wait in a collective for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 1:
        for worker in multiprocessing.active_children():  # which may hang, and outlive this
            worker.kill()
        os._exit(code)
    sys.exit(code)


def _failed(error: Exception | str, code: int) -> int:
    print("error:", command.said(error), file=sys.stderr)
    return code


def _run(config: "ConfigDict", arguments: argparse.Namespace) -> int:
    import jax

    _initialise(arguments)
    from ood_jax import lock, loop, score, stages

    runs = stages.prepared(config)
    run = list(runs.values())[-1]
    name = run.config.name or run.config.method.name
    workdir = arguments.workdir or f"runs/{name}"
    if run.method.maker is None:
        score.check_sources(run.config)
    steps = " + ".join(f"{one.config.train.steps:,}" for one in runs.values())
    _say(
        f"{name}: {steps} steps on {run.mesh.size} {jax.devices()[0].platform} device(s),"
        f" in {workdir}"
    )
    loop.make_workdir(workdir)
    with lock.locked(workdir):
        try:
            stages.train(runs, workdir)
        except loop.Diverged as error:
            return _failed(error, 1)
        except loop.Interrupted as stop:
            print(str(stop), file=sys.stderr)
            return stop.code
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which JAX's service would swallow
        if run.method.maker is None:  # else there is no network of images to score
            score.score_run(workdir, config=run.config)
    return 0


def _initialise(arguments: argparse.Namespace) -> None:
    import jax

    if arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    elif arguments.distributed:
        jax.distributed.initialize()


def _say(text: str) -> None:
    import jax

    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ood_jax.main",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", help="where everything is written; runs/NAME by default")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process", type=int, help="which one this is, from 0")
    parser.add_argument(
        "--distributed", action="store_true", help="find the other processes by the cluster's rules"
    )
    return parser


if __name__ == "__main__":
    cpu.prepare("ood_jax.main")
    leave(main(sys.argv[1:]))
