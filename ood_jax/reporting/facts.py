"""What was compared, what the runs do in distribution, and what their scorers say of themselves."""

import json
from collections.abc import Sequence
from typing import Any

from ood_jax import accuracy_drop
from ood_jax.reporting.blocks import Block, Body, Cell, Column, LeftOut, Table, Text, clean
from ood_jax.reporting.tables import (
    NONE,
    accuracy_cell,
    bodies,
    cell,
    columns,
    counted,
    percent_cell,
    places,
)
from ood_jax.reporting.variants import ALIKE, Variant, differing, partial, seed, shown

OF_SOME = ("second_accuracy", "accuracy_before", "second_accuracy_before", "skipped")
HIGHLIGHTS = (
    "method.name",
    "method.preset",
    "data.train",
    "data.test",
    "data.auxiliary",
    "data.size",
    "model.name",
    "model.width",
    "model.depth",
    "train.batch",
    "train.epochs",
    "score.feature",
    "score.benchmark",
)
INSIDE = (
    ("accuracy", "ID accuracy, %"),
    ("second_accuracy", "ID accuracy, second classifier, %"),
    ("accuracy_before", "ID accuracy before the last stage, %"),
    ("second_accuracy_before", "second classifier before it, %"),
    ("knn_accuracy", "kNN accuracy, %"),
    ("sensitivity_auroc", "sensitivity, %"),
    ("sensitivity_auroc_literal", "literal sensitivity, %"),
    ("occupied_classes", "occupied soft-classes, %"),
    ("n_train", "train images"),
    ("n_test", "test images"),
    ("n_calibration", "calibration images"),
    ("skipped", "unreadable images"),
)


def compared(variants: Sequence[Variant]) -> list[Block]:
    """The runs, and the settings in which they differ."""
    rows = tuple(
        tuple(Cell(text) for text in (run.label, f"{run.step:,}", str(seed(run)), run.workdir))
        for variant in variants
        for run in variant.runs
    )
    header = tuple(map(Column, ("run", "step", "seed", "workdir")))
    plain = tuple(tuple(Cell(clean(c.text)) for c in row) for row in rows)
    out: list[Block] = [Table("Runs", "", header, (Body("", plain),), numeric=False)]
    firsts = [variant.runs[0] for variant in variants]
    keys = [key for key in differing(firsts) if key not in ALIKE]
    shared = [key for key in HIGHLIGHTS if key not in keys and firsts[0].config.get(key)]
    if shared:
        listed = "; ".join(f"{key} = {shown(firsts[0].config[key])}" for key in shared)
        out.append(
            Text(clean(f"Settings of {'all runs' if len(firsts) > 1 else 'the run'}: {listed}."))
        )
    if keys:
        body = tuple(
            (Cell(key), *(Cell(clean(shown(run.config.get(key)))) for run in firsts))
            for key in keys
        )
        header = (Column("setting"), *(Column(clean(variant.name)) for variant in variants))
        title = "Settings that differ"
        out.append(Table(title, "", header, (Body("", body),), numeric=False))
    elif len(firsts) > 1:
        out.append(Text("No setting differs between the runs beside step, seed and name."))
    if absent := partial(firsts):
        out.append(LeftOut(clean(f"Settings that only some runs have: {', '.join(absent)}.")))
    return out


def in_distribution(variants: Sequence[Variant]) -> list[Block]:
    """Accuracies, sensitivity and occupied soft-classes."""
    stats = [variant.numbers["in_distribution"] for variant in variants]
    keys = [(key, title) for key, title in INSIDE if any(key in stat for stat in stats)]
    rows = tuple(
        (Cell(counted(variant)), *(_measure(stat, key) for key, _ in keys))
        for variant, stat in zip(variants, stats, strict=True)
    )
    caption = (
        "Sensitivity: AUROC of train against test images under the first scorer, each train image"
        " left out of the bank that judges it; literal: where it meets itself. 50 = the two look"
        " alike. Occupied: share of soft-classes whose mean probability over the test images"
        " exceeds 1/K."
    )
    if any(_dropped(stat, key) for stat in stats for key, _ in keys):
        caption += f" {accuracy_drop.BEFORE}."
    header = (Column(""), *(Column(title) for _, title in keys))
    out: list[Block] = [Table("In distribution", caption, header, (Body("", rows),))]
    expected = [one for one in INSIDE if one[0] not in OF_SOME and not one[0].startswith("n_")]
    absent = [title.removesuffix(", %") for key, title in expected if (key, title) not in keys]
    if absent:
        out.append(LeftOut(f"Not measured in these runs: {', '.join(absent)}."))
    return out


def _dropped(stats: dict[str, Any], key: str) -> bool:
    """Was it higher before the last stage?"""
    now, before = stats.get(key), stats.get(f"{key}_before")
    if now is None or before is None:
        return False
    return accuracy_drop.dropped(now["mean"], before["mean"])


def _measure(stats: dict[str, Any], key: str) -> Cell:
    stat = stats.get(key)
    if stat is None:
        return NONE
    if not key.startswith("n_") and key != "skipped":
        return accuracy_cell(stat, _dropped(stats, key))
    values = sorted(set(stat["values"].values()))
    return Cell(f"{values[0]:,.0f}" + (f" to {values[-1]:,.0f}" if len(values) > 1 else ""))


def thresholds(variants: Sequence[Variant]) -> list[Block]:
    """What the calibrated threshold does: in-distribution images kept, OOD images rejected."""
    where = places(variants)

    def row(variant: Variant, scorer: str) -> tuple[Cell, ...]:
        own = variant.numbers["scorers"].get(scorer, {})
        kept = percent_cell(own["kept_test"]) if "kept_test" in own else NONE
        threshold = _number(own["threshold"]) if "threshold" in own else NONE
        rejected = tuple(cell(variant, place, scorer, "rejected") for place in where)
        return (threshold, kept, *rejected)

    rows = bodies(variants, row)
    if not rows:
        return [LeftOut("No calibrated thresholds in these results: score again to have them.")]
    caption = (
        "In percent. The threshold comes from in-distribution calibration images alone. Kept: share"
        " of in-distribution test images at or below it. The other columns: share of OOD images"
        " rejected, above it; higher is better where as many are kept."
    )
    header = (Column(""), Column("threshold"), Column("kept", "ID test"), *columns(where))
    return [Table("At the calibrated threshold", caption, header, rows)]


def _number(stat: dict[str, Any]) -> Cell:
    return Cell(f"{stat['mean']:.4g}", f"± {stat['std']:.2g}" if stat["std"] is not None else "")


def of_scorers(variants: Sequence[Variant]) -> list[Block]:
    """What fitting told (shrinkage, thresholds, dimensions), and who was not scored, and why."""
    facts: list[tuple[str, str, str]] = []
    reasons: list[tuple[str, str, str]] = []
    for variant in variants:
        fitted = [name for run in variant.runs for name in run.results.get("scorers", {})]
        facts += [(name, _facts(variant, name), variant.name) for name in dict.fromkeys(fitted)]
        lacking = variant.runs[0].results.get("not_scored") or {}
        reasons += [(name, str(reason), variant.name) for name, reason in lacking.items()]
    facts = [one for one in facts if one[1]]
    out: list[Block] = [] if facts else [LeftOut("The results tell no facts of fitted scorers.")]
    for title, column, found in (
        ("Facts of the fitted scorers", "facts", facts),
        ("Not scored", "reason", reasons),
    ):
        if found:
            header = tuple(map(Column, ("scorer", column, "runs")))
            rows = _shared(found, len(variants))
            out.append(Table(title, "", header, (Body("", rows),), numeric=False))
    return out


def _shared(found: Sequence[tuple[str, str, str]], count: int) -> tuple[tuple[Cell, ...], ...]:
    """(scorer, text, variant) as rows, one for all `count` variants that say the same."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for scorer, text, variant in sorted(found, key=lambda one: one[0]):
        by_text.setdefault((scorer, text), []).append(variant)
    return tuple(
        (
            Cell(clean(scorer)),
            Cell(clean(text)),
            Cell("all" if len(names) == count else clean("; ".join(names))),
        )
        for (scorer, text), names in by_text.items()
    )


def _facts(variant: Variant, scorer: str) -> str:
    """Each fact with its values over the seeds, equal ones once."""
    found: dict[str, dict[str, None]] = {}
    for run in variant.runs:
        facts = run.results.get("scorers", {}).get(scorer, {}).get("facts") or {}
        for key, value in facts.items() if isinstance(facts, dict) else ():
            found.setdefault(str(key), {})[_value(value)] = None
    return clean("; ".join(f"{key} {' / '.join(values)}" for key, values in found.items()))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
