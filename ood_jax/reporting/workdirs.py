"""What a scoring run left in its workdir, as far as it is there and can be read."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ood_jax.config import named_sources
from ood_jax.logs import FILE, read_metrics
from ood_jax.reporting.blocks import clean

SCHEMAS = (1, 2)
TEST, TRAIN = "test", "train"


class Scores(NamedTuple):
    """One set under the run's first scorer, higher = more OOD.

    images: its names, a pyarrow array. rows: int [N], numbers in the source. scores: float64 [N].
    ranks: float64 [N], percent.
    """

    images: Any
    rows: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray


class Run(NamedTuple):
    """One scored workdir.

    label: what pictures call it. config: "a.b" -> value. primary: its first scorer. scores: set ->
    Scores of `primary`. examples: the arrays of examples.npz. metrics: lines of metrics.jsonl.
    missing: "scores", "examples" or "metrics" -> why there is none.
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
    missing: dict[str, str]


def read(workdir: str) -> Run:
    """Reads results.json, and what else is there.

    Raises:
      ValueError: no results.json, or one that this version cannot read.
    """
    folder = Path(workdir).expanduser()
    results = _results(folder / "results.json")
    primary = next(iter([*results.get("scorers", {}), *first_set(results)]), "")
    missing: dict[str, str] = {}

    def optional(kind: str, name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        if not (folder / name).is_file():
            missing[kind] = f"no {name}"
            return empty
        try:
            return reader(folder / name)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, zipfile.BadZipFile) as e:
            missing[kind] = clean(f"{name} cannot be read ({type(e).__name__}: {e})")
            return empty

    name = clean(results["name"])
    return Run(
        workdir,
        name,
        name,
        results["step"],
        _flat(results["config"]),
        results,
        primary,
        optional("scores", "scores.parquet", lambda path: _scores(path, primary), {}),
        optional("examples", "examples.npz", _examples, {}),
        optional("metrics", FILE, lambda path: read_metrics(path.parent), []),
        missing,
    )


def _results(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ValueError(f"--workdirs: there is no folder {path.parent}")
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no results.json: score it first, python -m ood_jax.score"
            f" --workdir={path.parent}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): score again") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema not in SCHEMAS:
        raise ValueError(f"{path} has schema {schema!r}; this version reads 1 and 2: score again")
    _check_shape(path, found)
    return found


def _check_shape(path: Path, found: dict[str, Any]) -> None:
    kinds = {"name": str, "step": int, "config": dict, "in_distribution": dict, "sets": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    optional = ("near", "far", "scorers", "not_scored", "skipped", "groups")
    wrong += [key for key in optional if not isinstance(found.get(key, {}), dict)]
    if not wrong:
        trees = [*found["sets"].values(), found.get("near", {}), found.get("far", {})]
        trees.append(found.get("scorers", {}))
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


def _named_groups(config: dict[str, Any]) -> dict[str, Any]:
    if name := config.get("score.benchmark"):
        from ood_jax import openood

        try:
            benchmark = openood.benchmark(name)
        except ValueError:  # of another version
            return {}
        return {"near": list(benchmark.near), "far": list(benchmark.far)}
    try:
        return {
            group: list(named_sources(tuple(config.get(f"score.{group}") or ())))
            for group in ("near", "far")
        }
    except ValueError:
        return {}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _scores(path: Path, scorer: str) -> dict[str, Scores]:
    from pyarrow import compute, parquet

    columns = ["image", "index", "set", "score", "ood_rank"]
    table = parquet.read_table(path, columns=columns, filters=[("scorer", "=", scorer)])
    found = {}
    for name in compute.unique(table["set"]).to_pylist():
        part = table.filter(compute.equal(table["set"], name))
        rows, scores, ranks = (part[c].to_numpy() for c in ("index", "score", "ood_rank"))
        if np.isnan(scores).any():
            raise ValueError(f"scores of {name} that are no numbers")
        found[name] = Scores(part["image"], rows, scores, ranks)
    return found


def _examples(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
