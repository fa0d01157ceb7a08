"""Many runs of the main job: the product of recipes, settings and seeds, each with its workdir."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ood_jax import config as configs
from ood_jax.recipe import load
from ood_jax.results import read_results

# A run works these out from one another and the size of its train set; a name changes no number.
_WORKED_OUT = ("name", "train.epochs", "train.steps", "train.steps_per_epoch")


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
        config=configs.flat(_loaded(recipe, asked)),
    )


def _loaded(recipe: str, asked: Sequence[str]) -> configs.ConfigDict:
    try:
        return load(list(asked))
    except ValueError as error:
        named = str(error) if recipe in str(error) else f"{recipe}: {error}"
        raise ValueError(named) from error


def _safe(text: str) -> str:
    """A folder's name for `text`; texts that would share one get a digest."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def finished(run: Run) -> dict[str, Any] | None:
    """What WORKDIR/results.json says, if it is of this very config trained to its end; or None."""
    try:
        found = read_results(run.workdir / "results.json")
    except ValueError:
        return None
    scored = configs.from_json(json.dumps(found["config"]))
    earlier = configs.from_json(json.dumps(found.get("earlier_stages", {})))
    stages = tuple(earlier) + run.config["stages"][-1:]
    if stages != run.config["stages"]:
        return None
    if not all(_trained(_of_stage(run.config, stage), earlier[stage]) for stage in earlier):
        return None
    last = _of_stage(run.config, stages[-1]) if stages else run.config
    done = _trained(last, scored) and scored.train.steps <= found["step"]
    return found if done else None


def _of_stage(asked: dict[str, Any], stage: str) -> dict[str, Any]:
    """The keys of one stage of the whole config `asked`."""
    return {
        key.removeprefix(f"{stage}."): value
        for key, value in asked.items()
        if key.startswith(f"{stage}.")
    }


def _trained(asked: dict[str, Any], config: configs.ConfigDict) -> bool:
    """Is `config`, of a run that was trained, what was asked for?"""
    used = configs.flat(configs.complete(config))
    same = all(used.get(key) == value for key, value in asked.items() if key not in _WORKED_OUT)
    return same and _steps(asked, used) == used["train.steps"]


def _steps(asked: dict[str, Any], used: dict[str, Any]) -> int:
    """How many steps `asked` means where an epoch is as long as in `used`; 0 = it is not."""
    epoch = used["train.steps_per_epoch"]
    if asked["train.steps_per_epoch"] not in (0, epoch):
        return 0
    return asked["train.steps"] or round(asked["train.epochs"] * epoch)
