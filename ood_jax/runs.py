"""Many runs of the main job: recipes, settings, a benchmark's cases and seeds, each its workdir."""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from ood_jax import config as configs
from ood_jax.cases import Case
from ood_jax.place import place
from ood_jax.recipe import load
from ood_jax.results import read_results
from ood_jax.untrusted import MISSHAPEN

# A run works these out from one another and the size of its train set; a name changes no number.
_WORKED_OUT = ("name", "train.epochs", "train.steps", "train.steps_per_epoch")
WHOLE = Case("", {})  # the recipe as it is

Cases = Callable[[configs.ConfigDict], Sequence[Case]]  # of a recipe with its settings


def whole(_: configs.ConfigDict) -> Sequence[Case]:
    """The cases of a sweep: every recipe as it is."""
    return (WHOLE,)


class Run(NamedTuple):
    """One run of ood_jax.main.

    variant: its recipe and settings in words, the same for all cases and seeds. recipe:
    FILE[:ARGUMENT]. settings: what this variant and case set, key -> text as on a command line.
    workdir: where it writes. arguments: of `python -m ood_jax.main`. config: every key that these
    ask for, "a.b" -> value. case: of a benchmark; WHOLE = of none.
    """

    variant: str
    seed: int
    recipe: str
    settings: dict[str, str]
    workdir: epath.Path
    arguments: tuple[str, ...]
    config: dict[str, Any]
    case: Case = WHOLE

    @property
    def row(self) -> str:
        """What its table row is called, the same for all seeds."""
        return f"{self.variant} {self.case.folder}".rstrip()

    @property
    def scored(self) -> dict[str, Any]:
        """The keys of the stage that is scored."""
        stages = self.config["stages"]
        return _of_stage(self.config, stages[-1]) if stages else self.config


def expand(
    recipes: Sequence[str],
    overrides: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[str]],
    workdir: epath.PathLike,
    cases: Cases = whole,
) -> list[Run]:
    """The runs of a sweep, seeds innermost: recipes x values of each setting x cases x seeds.

    recipes: FILE[:ARGUMENT]. overrides: `--config.key=value`, the same in all runs. settings:
    key -> values as text. cases: the config of a recipe with its settings -> what a benchmark makes
    of it; what a case sets takes the place of the user's own value. A run's workdir depends on
    nothing but its recipe, settings, case and seed.

    Raises:
      ValueError: unknown key or recipe, a value of another type, a key set twice, what `cases`
        refuses.
    """
    given = [_key(flag) for flag in overrides]
    if "seed" in [*given, *settings]:
        raise ValueError("seed is set in two places: a sweep takes it from --seeds alone")
    if twice := sorted(set(given) & set(settings)):
        raise ValueError(f"{', '.join(twice)}: give --set or --config.{twice[0]}, not both")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds {tuple(seeds)}: give one or more, each once")
    runs, root = [], place(workdir)
    for recipe, *values in itertools.product(recipes, *settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        flags = [*overrides, *_flags(chosen)]
        with _naming(recipe):
            config = load([f"--config={recipe}", *flags])
            made = cases(config)
        for case in made:
            kept = [flag for flag in flags if not _replaced(flag, case, config)]
            runs += [_run(recipe, chosen, kept, case, seed, root) for seed in seeds]
    _check_apart(runs)
    return runs


def _check_apart(runs: Sequence[Run]) -> None:
    folders = [run.workdir for run in runs]
    if len(set(folders)) < len(folders):
        clash = min(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(
            f"two runs would write to {clash}: give recipes of different names, and each value once"
        )


def _run(
    recipe: str,
    chosen: dict[str, str],
    kept: Sequence[str],
    case: Case,
    seed: int,
    root: epath.Path,
) -> Run:
    """chosen: what names the variant. kept: the user's flags, but for what `case` sets itself."""
    path, _, argument = recipe.partition(":")
    stem = "-".join([Path(path).stem, *argument.replace("=", "-").split(",")]).rstrip("-")
    pairs = [f"{key}={value}" for key, value in chosen.items()]
    folder = ",".join([_safe(part) for part in (stem, *pairs, case.folder) if part])
    if len(folder) > 150:  # file systems stop at 255 bytes
        folder = f"{folder[:130]}-{_digest(folder)}"
    own = {key: as_text(value) for key, value in case.settings.items()}
    of_seed = {key: text.replace("{seed}", str(seed)) for key, text in own.items()}
    asked = (f"--config={recipe}", *kept, *_flags(of_seed), f"--config.seed={seed}")
    workdir = root / folder / f"seed{seed}"
    with _naming(recipe):
        config = load(list(asked))
    return Run(
        variant=" ".join([stem, *pairs]),
        seed=seed,
        recipe=recipe,
        settings=chosen | own,
        workdir=workdir,
        arguments=(*asked, f"--workdir={workdir}"),
        config=configs.flat(config),
        case=case,
    )


def as_text(value: Any) -> str:
    """A config's value, or a JSON one, as --config.key= takes it."""
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)  # double quotes: a shell's need no escapes
    if isinstance(value, list):  # of --set; it names the folders of runs that are there already
        return repr(tuple(value))
    return value if isinstance(value, str) else json.dumps(value)


def _flags(settings: Mapping[str, str]) -> list[str]:
    return [f"--config.{key}={text}" for key, text in settings.items()]


def _key(flag: str) -> str:
    return re.sub(r"^--?(no)?config\.", "", flag.split("=", 1)[0])


def _replaced(flag: str, case: Case, config: configs.ConfigDict) -> bool:
    """Does `case` set all that `flag` sets? It was made from that; and tuples would add up."""

    def keys(key: str) -> set[str]:
        of_one = not config.stages or key.split(".")[0] in config.stages
        return {key} if of_one else {f"{stage}.{key}" for stage in config.stages}

    return keys(_key(flag)) <= {one for key in case.settings for one in keys(key)}


@contextlib.contextmanager
def _naming(recipe: str) -> Iterator[None]:
    """Errors within name the recipe."""
    try:
        yield
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
        return found if _is_of(found, run) else None
    except MISSHAPEN:
        return None


def _is_of(found: dict[str, Any], run: Run) -> bool:
    scored = configs.from_json(json.dumps(found["config"]))
    earlier = configs.from_json(json.dumps(found.get("earlier_stages", {})))
    stages = tuple(earlier) + run.config["stages"][-1:]
    if stages != run.config["stages"]:
        return False
    if not all(_trained(_of_stage(run.config, stage), earlier[stage]) for stage in earlier):
        return False
    return _trained(run.scored, scored) and scored.train.steps <= found["step"]


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
