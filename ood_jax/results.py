"""What scoring leaves behind: results.json, per-image scores, and the table on screen."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax import transductive
from ood_jax.accuracy_drop import BEFORE, dropped, marked
from ood_jax.atomic import replaced
from ood_jax.place import place, reason
from ood_jax.untrusted import read_json

SCHEMA = 2
COUNTS = ("n_in", "n_out")  # of an OOD set's metrics; the others are fractions
SHOWN = (  # titles of the tables on screen
    ("auroc", "AUROC, %"),
    ("fpr95_id_positive", "FPR at 95 % TPR, ID positive, %: OOD images accepted"),
    ("fpr95_ood_positive", "FPR at 95 % TPR, OOD positive, %: ID images rejected"),
)
FEW = 100  # calibration images
COLUMNS = 5  # scorers side by side in 100 characters
WIDTH = 100  # where there is no terminal


class SetScores(NamedTuple):
    """All scores of one set's images.

    names: path or number of each. rows: int32 [N], their numbers in the source. labels: int32 [N]
    or None. scores: scorer -> float [N], higher = more OOD. ranks: scorer -> float64 [N], percent.
    """

    names: Sequence[str]
    rows: np.ndarray
    labels: np.ndarray | None
    scores: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]


def _deviation(calibrated: int) -> float:
    """Standard deviation of the share kept by the 95 % quantile of so many images (a beta's)."""
    below = min(max(round(0.95 * (calibrated + 1)), 1), calibrated)
    total = calibrated + 1
    return (below * (total - below) / (total**2 * (total + 1))) ** 0.5


def places(path: epath.Path) -> dict[str, epath.Path]:
    """Where things lie beside the JSON at `path`: files, and the folder "plots".

    W/results.json: W/scores.parquet, W/scores.csv, W/examples.npz, W/calibration.json, W/plots/.
    F.json: F.scores.parquet, and so on.
    """
    prefix = "" if path.name == "results.json" else f"{path.stem}."
    named = {
        "parquet": "scores.parquet",
        "csv": "scores.csv",
        "examples": "examples.npz",
        "calibration": "calibration.json",
        "plots": "plots",
    }
    return {kind: path.parent / (prefix + name) for kind, name in named.items()}


def group_means(
    sets: dict[str, dict[str, dict[str, Any]]], names: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Unweighted means over the sets `names`: {SCORER: {metric: mean}}, without the counts."""
    chosen = [sets[name] for name in names]
    return {
        scorer: {
            metric: float(np.mean([found[scorer][metric] for found in chosen]))
            for metric in chosen[0][scorer]
            if metric not in COUNTS
        }
        for scorer in (chosen[0] if chosen else {})
    }


def write_results(results: dict[str, Any], path: epath.PathLike) -> None:
    """Writes results.json, whole or not at all.

    Raises:
      ValueError: a number that JSON does not have (NaN, infinity), or the place cannot be written.
      OSError: object storage does not take it.
    """
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    with replaced(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_results(path: epath.PathLike) -> dict[str, Any]:
    """What `write_results` wrote.

    Raises:
      ValueError: no such file, no JSON, or of another schema.
    """
    try:
        found = read_json(place(path))
    except OSError as error:
        raise ValueError(f"{path}: {reason(error)}; give a results.json") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); give a results.json") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this version reads {SCHEMA}: score again")
    return found


def write_scores(sets: dict[str, SetScores], parquet: epath.PathLike, csv: epath.PathLike) -> None:
    """One line an image and scorer: image, index, label, set, scorer, score, ood_rank.

    image: its path, or its number where it has none. index: its number in the source. label: empty
    where there is none. ood_rank: percent of ID test images that look more in-distribution.
    The CSV holds the same table as the Parquet file.
    """
    import pyarrow as pa
    from pyarrow import csv as pa_csv
    from pyarrow import parquet as pa_parquet

    table = pa.concat_tables(
        _table(pa, name, scorer, found) for name, found in sets.items() for scorer in found.scores
    )
    with replaced(parquet) as fresh:
        pa_parquet.write_table(table, fresh)
    with replaced(csv) as fresh:
        pa_csv.write_csv(table, fresh)


def _table(pa: Any, name: str, scorer: str, found: SetScores) -> Any:
    count = len(found.rows)
    labels = np.full(count, -1, np.int32) if found.labels is None else found.labels
    return pa.table(
        {
            "image": pa.array(list(found.names), pa.string()),
            "index": pa.array(found.rows, pa.int32()),
            "label": pa.array(labels, pa.int32(), mask=labels < 0),
            "set": pa.array([name] * count, pa.string()),
            "scorer": pa.array([scorer] * count, pa.string()),
            "score": pa.array(np.asarray(found.scores[scorer], np.float64)),
            "ood_rank": pa.array(found.ranks[scorer]),
        }
    )


def show(results: dict[str, Any]) -> None:
    """Prints the tables: few scorers as columns, many as rows; plain text where no terminal is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    rows = table_rows(results)
    scorers = list(next(iter(results["sets"].values()), {}))
    many = len(scorers) > COLUMNS
    sets = [name for name, _, _ in rows]
    down, across = (scorers, sets) if many else (sets, scorers)
    values = {(name, scorer): found[scorer] for name, found, _ in rows for scorer in scorers}
    means = {name for name, _, mean in rows if mean}
    for metric, title in SHOWN if scorers else ():
        for start in range(0, len(across), COLUMNS):
            columns = across[start : start + COLUMNS]
            table = Table(title=title, title_justify="left", box=box.SIMPLE)
            table.add_column("scorer" if many else "OOD set", no_wrap=True)
            for name in columns:
                header = name.replace("@", "\n@").replace(" (", "\n(")
                table.add_column(header, justify="right", overflow="fold", min_width=6)
            for name in down:
                keys = [(column, name) if many else (name, column) for column in columns]
                cells = [f"{100 * values[key][metric]:.2f}" for key in keys]
                table.add_row(*map(Text, (name, *cells)), style="bold" if name in means else "")
            console.print(table)
    console.print(Text("\n".join(in_distribution_lines(results))))


def table_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any], bool]]:
    """(name, {SCORER: metrics}, is it a mean?): near sets, their mean, far sets, their mean.

    The names of transductive sets, and of means over any, end in `transductive.SIGN`.
    """
    rows: list[tuple[str, dict[str, Any], bool]] = []
    seen = transductive.counts_of(results)
    sets = dict(results["sets"])
    for group in ("near", "far"):
        names = results["groups"][group]
        if not names:
            continue
        rows += [
            (f"{transductive.marked(name, seen)} ({group})", sets.pop(name), False)
            for name in names
        ]
        mean = transductive.marked(f"mean of {group}", seen, *names)
        rows.append((mean, results[group], True))
    return rows + [(transductive.marked(n, seen), found, False) for n, found in sets.items()]


def _accuracy_lines(found: dict[str, Any]) -> list[str]:
    """The first classifier's, the second's, and both before the last stage; drops are marked."""
    names = ("accuracy", "second_accuracy")
    drops = {
        name
        for name in names
        if found.get(name) is not None and dropped(found[name], found.get(f"{name}_before"))
    }
    texts = []
    for ending, when in (("", ""), ("_before", " before the last stage")):
        each = [
            marked(f"{100 * found[name + ending]:.2f} %", name + ending in drops)
            for name in names
            if found.get(name + ending) is not None
        ]
        if each:
            texts.append(f"accuracy{when} {', of the second classifier '.join(each)}")
    return [f"{texts[0]}; {BEFORE}", *texts[1:]] if drops else texts


def in_distribution_lines(results: dict[str, Any]) -> list[str]:
    """The in-distribution block in words, one fact a line; what was not measured is left out."""
    found = results["in_distribution"]
    lines = [
        f"{results['name']}, step {results['step']:,};"
        f" {found['n_train']:,} train and {found['n_test']:,} test images"
    ]
    if found["knn_accuracy"] is not None:
        near = found["knn_neighbours"]
        lines.append(f"kNN accuracy {100 * found['knn_accuracy']:.2f} % ({near} neighbours)")
    lines += _accuracy_lines(found)
    if found["sensitivity_auroc"] is not None:
        left_out, literal = found["sensitivity_auroc"], found["sensitivity_auroc_literal"]
        line = f"sensitivity: AUROC of train against test {100 * left_out:.2f} %"
        if literal != left_out:  # they are the same where the score has no bank
            line += f" ({100 * literal:.2f} % where a train image meets itself)"
        lines.append(line)
    if found["occupied_classes"] is not None:
        lines.append(f"occupied soft-classes {100 * found['occupied_classes']:.2f} %")
    scorer, own = next(iter(results["scorers"].items()))
    lines.append(
        f"threshold of {scorer}: {own['threshold']:.6g}, from {found['n_calibration']:,}"
        f" calibration images; it keeps {100 * own['kept_test']:.2f} % of the test images"
    )
    if found["n_calibration"] < FEW:
        lines.append(
            f"few images set it: ± {100 * _deviation(found['n_calibration']):.0f} points;"
            " name more by score.calibration"
        )
    lines += [f"{name} not scored: {why}" for name, why in results["not_scored"].items()]
    skipped = {name: count for name, count in results["skipped"].items() if count}
    if skipped:
        listed = ", ".join(f"{name} {count:,}" for name, count in skipped.items())
        lines.append(f"images that could not be read: {listed}")
    return lines + transductive.lines(results)
