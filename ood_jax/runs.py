"""Many runs of the main job: the product of recipes, settings and seeds, each with its workdir."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ood_jax import config as configs

SCHEMA = 1  # of results.json
# "" and 0 ask the run itself to fill these in.
_FILLED_IN = ("name", "train.steps", "train.steps_per_epoch")


class Run(NamedTuple):
    """One run of ood_jax.main.

    variant: what its table row is called, the same for all seeds. recipe: FILE[:ARGUMENT].
    settings: what this variant sets, key -> text as on a command line. workdir: where it writes.
    arguments: of `python -m ood_jax.main`. config: every key that these ask for, "a.b" -> value.
    """

    variant: str
    seed: int
    recipe: str
    settings: dict[str, str]
    workdir: Path
    arguments: tuple[str, ...]
    config: dict[str, Any]


def expand(
    recipes: Sequence[str],
    overrides: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[str]],
    workdir: str | Path,
) -> list[Run]:
    """The runs of a sweep, seeds innermost: recipes x values of each setting x seeds.

    recipes: FILE[:ARGUMENT]. overrides: `--config.key=value`, the same in all runs. settings:
    key -> values as text. A run's workdir depends on nothing but its recipe, settings and seed.

    Raises:
      ValueError: unknown key or recipe, a value of another type, a key set twice.
    """
    given = [re.sub(r"^--?(no)?config\.", "", o.split("=", 1)[0]) for o in overrides]
    if "seed" in [*given, *settings]:
        raise ValueError("seed is set in two places: a sweep takes it from --seeds alone")
    if twice := sorted(set(given) & set(settings)):
        raise ValueError(f"{', '.join(twice)}: give --set or --config.{twice[0]}, not both")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds {tuple(seeds)}: give one or more, each once")
    runs = []
    for recipe, *values in itertools.product(recipes, *settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        runs += [_run(recipe, overrides, chosen, seed, Path(workdir)) for seed in seeds]
    folders = [run.workdir for run in runs]
    if clash := {str(folder) for folder in folders if folders.count(folder) > 1}:
        raise ValueError(
            f"two runs would write to {min(clash)}: give recipes of different names,"
            " and each value once"
        )
    return runs


def _run(
    recipe: str, overrides: Sequence[str], settings: dict[str, str], seed: int, root: Path
) -> Run:
    path, _, argument = recipe.partition(":")
    stem = "-".join([Path(path).stem, *argument.replace("=", "-").split(",")]).rstrip("-")
    pairs = [f"{key}={value}" for key, value in settings.items()]
    folder = ",".join([_safe(stem), *map(_safe, pairs)])
    if len(folder) > 150:  # file systems stop at 255 bytes
        folder = f"{folder[:130]}-{_digest(folder)}"
    asked = (
        f"--config={recipe}",
        *overrides,
        *(f"--config.{pair}" for pair in pairs),
        f"--config.seed={seed}",
    )
    workdir = root / folder / f"seed{seed}"
    return Run(
        variant=" ".join([stem, *pairs]),
        seed=seed,
        recipe=recipe,
        settings=settings,
        workdir=workdir,
        arguments=(*asked, f"--workdir={workdir}"),
        config=configs.flat(configs.load(list(asked))),
    )


def _safe(text: str) -> str:
    """A folder's name for `text`; texts that would share one get a digest."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def results(run: Run) -> dict[str, Any] | None:
    """What WORKDIR/results.json says, if it is of this very config trained to its end; or None."""
    try:
        found = json.loads((run.workdir / "results.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    if found.get("schema") != SCHEMA:
        return None
    used = configs.flat(configs.from_json(json.dumps(found["config"])))
    for key, value in run.config.items():
        if used.get(key) != value and not (key in _FILLED_IN and not value):
            return None
    return found if found["step"] >= (used.get("train.steps") or math.inf) else None
