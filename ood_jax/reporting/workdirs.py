"""What a scoring run left in its workdir, as far as it is there and can be read."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax import npz
from ood_jax.config import INCIDENTAL, named_sources
from ood_jax.logs import FILE, read_metrics
from ood_jax.place import kind, local, place
from ood_jax.reporting import norms_read, outliers_read
from ood_jax.reporting.blocks import clean
from ood_jax.reporting.norms_read import Norms
from ood_jax.reporting.outliers_read import Outliers
from ood_jax.untrusted import MISSHAPEN, UNREADABLE, check_table, read_json

if TYPE_CHECKING:
    from ood_jax.openood import Benchmark

SCHEMAS = (1, 2)
TEST, TRAIN = "test", "train"
WHEN = ("step", "time")  # of a line of metrics, no metrics themselves


class Scores(NamedTuple):
    """One set under the run's first scorer, higher = more OOD.

    images: its names, a pyarrow array. rows: int [N], numbers in the source. labels: int [N], -1 =
    none. scores: float64 [N]. ranks: float64 [N], percent.
    """

    images: Any
    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray


class Run(NamedTuple):
    """One scored workdir.

    label: what pictures call it. config: "a.b" -> value, and "STAGE.a.b" of what trained before the
    stage that was scored. primary: its first scorer. scores: set ->
    Scores of `primary`. examples: the arrays of examples.npz. metrics: lines of metrics.jsonl, of
    every stage as "STAGE/name" where the run has stages. norms: of norms.json. outliers: stage, ""
    = of the run itself -> what its outliers.json says. pictures: stage -> uint8 [H, W, 3], of those
    outliers. missing: "scores", "examples", "metrics" or "norms" -> why there is none; "outliers"
    -> which files of them are broken.
    """

    workdir: str
    label: str
    name: str
    step: int
    config: dict[str, Any]
    results: dict[str, Any]
    primary: str
    scores: dict[str, Scores]
    examples: dict[str, np.ndarray]
    metrics: list[dict[str, Any]]
    norms: Norms | None
    outliers: dict[str, Outliers]
    pictures: dict[str, np.ndarray]
    missing: dict[str, str]


def read(workdir: str) -> Run:
    """Reads results.json, and what else is there.

    Raises:
      ValueError: no results.json, or one that this version cannot read.
    """
    folder = place(workdir)
    results = _results(folder / "results.json")
    primary = next(iter([*results.get("scorers", {}), *first_set(results)]), "")
    missing: dict[str, str] = {}

    def optional(what: str, name: str, reader: Callable[[epath.Path], Any], empty: Any) -> Any:
        if kind(folder / name) != "file":
            reason = f"no {name}"
        else:
            try:
                return reader(folder / name)
            except UNREADABLE as error:
                reason = clean(f"{name} cannot be read ({type(error).__name__}: {error})")
        missing[what] = f"{missing[what]}; {reason}" if what in missing else reason
        return empty

    def of_stages(name: str, reader: Callable[[epath.Path], Any]) -> dict[str, Any]:
        """Of the stages that made outliers; the others have no such file, and lack nothing."""
        paths = {prefix.rstrip("/"): prefix + name for prefix in dict.fromkeys(["", *prefixes])}
        there = {stage: path for stage, path in paths.items() if kind(folder / path) == "file"}
        made = {stage: optional("outliers", path, reader, None) for stage, path in there.items()}
        return {stage: found for stage, found in made.items() if found is not None}

    prefixes = [f"{stage}/" if stage else "" for stage in _stages(folder)]
    name = clean(results["name"])
    return Run(
        workdir,
        name,
        name,
        results["step"],
        flat(results["config"]) | _earlier(results),
        results,
        primary,
        optional("scores", "scores.parquet", lambda path: _scores(path, primary), {}),
        optional("examples", "examples.npz", _examples, {}),
        [
            {key if key in WHEN else prefix + key: value for key, value in row.items()}
            for prefix in prefixes
            if not _untrained(results, prefix.rstrip("/"))
            for row in optional(
                "metrics", prefix + FILE, lambda path: read_metrics(path.parent), []
            )
        ],
        optional("norms", norms_read.FILE, norms_read.read, None),
        of_stages(outliers_read.FILE, outliers_read.read),
        of_stages(outliers_read.PICTURES, outliers_read.pictures),
        missing,
    )


def _untrained(results: dict[str, Any], stage: str) -> bool:
    """Is it an earlier stage without a step, which mined outliers, say, and logs nothing?"""
    train = results.get("earlier_stages", {}).get(stage, {}).get("train")
    return isinstance(train, dict) and train.get("steps") == 0


def _stages(folder: epath.Path) -> list[str]:
    """The run's stages, in whose folders their training outputs lie; [""] of a run without."""
    try:
        found = read_json(folder / "config.json")
        return [str(stage) for stage in found["stages"]] or [""]
    except (OSError, *MISSHAPEN):  # of an earlier version, or scored elsewhere
        return [""]


def _results(path: epath.Path) -> dict[str, Any]:
    if kind(path.parent) != "folder":
        raise ValueError(f"--workdirs: there is no folder {path.parent}")
    if kind(path) != "file":
        raise ValueError(
            f"{path.parent} has no results.json: score it first, python -m ood_jax.score"
            f" --workdir={path.parent}"
        )
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): score again") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema not in SCHEMAS:
        raise ValueError(f"{path} has schema {schema!r}; this version reads 1 and 2: score again")
    _check_shape(path, found)
    return found


def _check_shape(path: epath.Path, found: dict[str, Any]) -> None:
    kinds = {"name": str, "step": int, "config": dict, "in_distribution": dict, "sets": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    optional = ("near", "far", "scorers", "not_scored", "skipped", "groups", "earlier_stages")
    wrong += [key for key in optional if not isinstance(found.get(key, {}), dict)]
    if not wrong:
        trees = [*found["sets"].values(), found.get("near", {}), found.get("far", {})]
        trees += [found.get("scorers", {}), found.get("earlier_stages", {})]
        whole = all(
            isinstance(tree, dict) and all(isinstance(inner, dict) for inner in tree.values())
            for tree in trees
        )
        wrong = [] if whole else ["sets"]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} is absent or of another kind: score again")


def first_set(results: dict[str, Any]) -> dict[str, Any]:
    """{SCORER: metrics} of the first OOD set; {} = there is none."""
    return next(iter(results["sets"].values()), {})


def groups(run: Run) -> dict[str, list[str]]:
    """ "near", "far" and "other" -> the OOD sets that have results, in order."""
    sets = list(run.results["sets"])
    named = run.results.get("groups") or _named_groups(run.config)
    found = {group: [name for name in named.get(group, ()) if name in sets] for group in named}
    grouped = {name for names in found.values() for name in names}
    other = [name for name in sets if name not in grouped]
    return {"near": found.get("near", []), "far": found.get("far", []), "other": other}


def _named_groups(config: dict[str, Any]) -> dict[str, list[str]]:
    return {group: list(named) for group, named in _outside(config).items()}


def sources(run: Run) -> dict[str, str]:
    """Set -> its source as the config has it: "test", and the OOD sets that the config names."""
    test = _benchmark(run.config)
    inside = test.test if test else str(run.config.get("data.test") or "")
    outside = _outside(run.config)
    return {TEST: inside} | {
        name: spec for named in outside.values() for name, spec in named.items()
    }


def _outside(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """near and far -> OOD set -> source; {} where this version cannot read them."""
    named = _benchmark(config)
    try:
        return {
            group: named_sources(
                getattr(named, group) if named else tuple(config.get(f"score.{group}") or ())
            )
            for group in ("near", "far")
        }
    except ValueError:
        return {}


def _benchmark(config: dict[str, Any]) -> "Benchmark | None":
    """The benchmark that was scored, None = none, or one of another version."""
    from ood_jax import openood

    return openood.BENCHMARKS.get(str(config.get("score.benchmark") or ""))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _earlier(results: dict[str, Any]) -> dict[str, Any]:
    """Of the stages before the scored one, what tells two runs apart; their seed is the run's."""
    unlike = (*INCIDENTAL, "seed")
    configs = {stage: flat(tree) for stage, tree in results.get("earlier_stages", {}).items()}
    return {
        f"{stage}.{key}": value
        for stage, config in configs.items()
        for key, value in config.items()
        if key not in unlike and not key.startswith("score.")
    }


def _scores(path: epath.Path, scorer: str) -> dict[str, Scores]:
    from pyarrow import compute, parquet

    columns = ["image", "index", "label", "set", "score", "ood_rank"]
    with local(path) as near:
        check_table(near)
        table = parquet.read_table(near, columns=columns, filters=[("scorer", "=", scorer)])
    found = {}
    for name in compute.unique(table["set"]).to_pylist():
        part = table.filter(compute.equal(table["set"], name))
        rows, scores, ranks = (part[c].to_numpy() for c in ("index", "score", "ood_rank"))
        labels = compute.fill_null(part["label"], -1).to_numpy()
        if np.isnan(scores).any():
            raise ValueError(f"scores of {name} that are no numbers")
        found[name] = Scores(part["image"], rows, labels, scores, ranks)
    return found


def _examples(path: epath.Path) -> dict[str, np.ndarray]:
    with npz.opened(path) as file:
        return file.all()
