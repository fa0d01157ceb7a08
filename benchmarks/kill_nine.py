"""Is a run that kill -9 hits at random moments, and that is run again, the one nothing happened to?

    python benchmarks/kill_nine.py [--kills=30] [--seed=0]

A run of two stages of a few thousand parameters is killed once a row, in turn in training, while a
checkpoint is written (both after a random step), between its stages and in scoring, each a random
time after that began; then the same command ends it. "same" = all arrays of both stages' last
checkpoints byte for byte, all losses and all results. Exit code 1 where one is not. About half a
minute a kill on two cores.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
STAGES = ("pretrain", "joint")
STEPS = 12
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=2",
    "--config.train.log_every=1",
)
LIMIT = 600  # s that a run may take
# What is aimed at, and the longest random wait after it began, in s.
AIMS = {"training": 0.3, "save": 0.02, "between stages": 0.5, "scoring": 2.0}


def phase(workdir: Path) -> str:
    """What the run in `workdir` does now, as its files tell."""
    if any(workdir.glob("*/checkpoints/*-tmp*")):
        return "save"
    if (workdir / "results.json").exists():
        return "done"
    ended = [(workdir / stage / "checkpoints" / str(STEPS)).is_dir() for stage in STAGES]
    if ended[1]:
        return "scoring"
    began = [count > 0 for count in logged(workdir)]
    if ended[0] and not began[1]:
        return "between stages"
    return "training" if began[0] else "start"


def logged(workdir: Path) -> list[int]:
    """How many steps of each stage are done."""
    paths = [workdir / stage / "metrics.jsonl" for stage in STAGES]
    return [path.read_bytes().count(b"\n") if path.exists() else 0 for path in paths]


def command(recipe: str, workdir: Path) -> list[str]:
    """The command line of the run."""
    base = [sys.executable, "-m", "ood_jax.main", f"--config={recipe}", f"--workdir={workdir}"]
    return [*base, *FLAGS]


def finish(recipe: str, workdir: Path, env: dict[str, str]) -> str:
    """Runs it to its end; "" or the last line of what went wrong."""
    done = subprocess.run(
        command(recipe, workdir), env=env, capture_output=True, text=True, timeout=LIMIT
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def kill(recipe: str, workdir: Path, env: dict[str, str], aim: str, after: int, wait: float) -> str:
    """Runs it and kills it `wait` s after `aim` began, `after` steps or more from the start.

    Returns what it was doing when it died.
    """
    with subprocess.Popen(
        command(recipe, workdir), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        limit = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < limit:
            if sum(logged(workdir)) >= after and phase(workdir) == aim:
                break
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
    return f"{phase(workdir)}, after step {' + '.join(map(str, logged(workdir)))}"


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a run leaves and that must be the same: arrays' bytes, losses, results."""
    import tensorstore

    found: dict[str, Any] = {}
    for stage in STAGES:
        base = f"file://{workdir / stage / 'checkpoints' / str(STEPS) / 'state'}/"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for name in store.list().result():
            found[f"{stage}: {name.decode()}"] = store.read(name).result().value
        rows = (workdir / stage / "metrics.jsonl").read_text().splitlines()
        found[f"{stage}: losses"] = [[json.loads(r)[k] for k in ("step", "loss")] for r in rows]
    results = json.loads((workdir / "results.json").read_text())
    return found | {key: results[key] for key in ("sets", "in_distribution", "scorers")}


def verdict(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """ "same", or the first thing that differs."""
    names = sorted(expected.keys() | found.keys())
    return next((f"DIFFERS: {n}" for n in names if expected.get(n) != found.get(n)), "same")


def trials(
    count: int, seed: int, recipe: str, folder: Path, env: dict[str, str], show: Callable
) -> int:
    """`count` kills, each shown as a row; how many runs did not end the same."""
    if failed := finish(recipe, folder / "whole", env):
        raise SystemExit(f"the uninterrupted run failed: {failed}")
    expected, wrong, rng = outcome(folder / "whole"), 0, random.Random(seed)
    for i in range(count):
        aim = list(AIMS)[i % len(AIMS)]
        wait = rng.uniform(0, AIMS[aim])
        after = rng.randrange(1, 2 * STEPS - 1) if aim in ("training", "save") else 0
        workdir = folder / str(i)
        where = kill(recipe, workdir, env, aim, after, wait)
        failed = finish(recipe, workdir, env)
        found = f"FAILED: {failed}" if failed else verdict(expected, outcome(workdir))
        wrong += found != "same"
        show(f"{i + 1:>4}  {aim:<16}{wait:>7.3f}  {where:<38}{found}")
    return wrong


def main(argv: list[str]) -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    sys.path.insert(0, str(TESTS))
    from small_run import environment
    from test_stages import RECIPE

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.py").write_text(RECIPE.format(tests=str(TESTS)))
        env = environment(folder / "cache")
        print(f"{'':>4}  {'aimed at':<16}{'wait, s':>7}  {'died in':<38}verdict", flush=True)
        wrong = trials(
            options.kills, options.seed, f"{folder / 'recipe.py'}:{folder}", folder, env,
            lambda line: print(line, flush=True),
        )  # fmt: skip
    print(f"{options.kills - wrong} of {options.kills} runs ended as the uninterrupted one")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
