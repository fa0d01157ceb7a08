"""A benchmark's numbers: cases down, recipes across, AUROC as mean ± deviation over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ood_jax import accuracy_drop, transductive
from ood_jax.config import named_sources
from ood_jax.gather import Rows, Table, accuracies, percent, statistic
from ood_jax.runs import Run

BY_CLASS = ("one_vs_rest", "leave_one_class_out")  # benchmarks of which the mean is the number
MISSING = "–"

Cells = dict[str, dict[str, Any]]  # variant -> OOD set -> {"mean", "std", "n", "values"}, or None


def tabulate(
    benchmark: str, runs: Sequence[Run], gathered: dict[str, Any], scorer: str = ""
) -> dict[str, Any]:
    """The AUROC of every case, recipe and OOD set, fractions.

    {"benchmark", "seeds": [...], "runs", "missing": how many, "scorers": {VARIANT: SCORER}, "sets":
    {VARIANT: [SET, ...]}, "rows": [{"case", "curve", "at", "auroc", "accuracy", "transductive":
    {VARIANT: [SET, ...]}}], "mean", "mean_accuracy"}: auroc and mean are {VARIANT: {SET: x}}, x as
    `gather.statistic` has it, None where no run is finished; accuracy and mean_accuracy {VARIANT:
    x}, in distribution, None where there is none as well; a recipe that has no such case is not
    there. Means, {} where classes take no turns: of each seed over all cases, where it has them
    all.

    Args:
      gathered: `gather.gather` of the same runs. scorer: "" = each recipe's first.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.variant, run)
    scorers = {name: scorer or _scorer(run, gathered) for name, run in first.items()}
    sets = {name: _sets(run) for name, run in first.items()}
    rows: dict[str, dict[str, Any]] = {}
    inside = accuracies(gathered)
    for run in runs:
        case = run.case
        empty: dict[str, Any] = {"case": case.name, "curve": case.curve, "at": case.at}
        row = rows.setdefault(case.name, empty | {"auroc": {}, "accuracy": {}, "transductive": {}})
        parts = gathered["variants"][run.row]
        found = parts.get("sets", {})
        row["auroc"][run.variant] = {
            name: found.get(name, {}).get(scorers[run.variant], {}).get("auroc")
            for name in sets[run.variant]
        }
        row["accuracy"][run.variant] = inside[run.row]
        row["transductive"][run.variant] = list(parts.get("transductive", {}).get("sets", ()))
    listed = _in_order(list(rows.values()))
    return {
        "benchmark": benchmark,
        "seeds": sorted({run.seed for run in runs}),
        "runs": len(runs),
        "missing": sum(not run["finished"] for run in gathered["runs"]),
        "scorers": scorers,
        "sets": sets,
        "rows": listed,
        "mean": _means(listed, sets) if benchmark in BY_CLASS else {},
        "mean_accuracy": _mean_accuracies(listed, sets) if benchmark in BY_CLASS else {},
    }


def _scorer(run: Run, gathered: dict[str, Any]) -> str:
    """The first that the recipe asks for; of "all", the first that could run."""
    asked = run.scored["score.scorers"][0]
    sets = gathered["variants"][run.row].get("sets") or {}
    found = [scorer for one in sets.values() for scorer in one]
    return found[0] if asked == "all" and found else asked


def _sets(run: Run) -> list[str]:
    return list(named_sources(run.scored["score.near"] + run.scored["score.far"]))


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Line by line, small numbers first, whichever recipe brought a row along."""
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    return sorted(rows, key=lambda row: (curves.index(row["curve"]), row["at"] or 0))


def _means(rows: list[dict[str, Any]], sets: dict[str, list[str]]) -> Cells:
    out: Cells = {}
    for variant, names in sets.items():
        cells = [row["auroc"][variant] for row in rows if variant in row["auroc"]]
        out[variant] = {name: _mean([cell[name] for cell in cells]) for name in names}
    return out


def _mean_accuracies(
    rows: list[dict[str, Any]], variants: Iterable[str]
) -> dict[str, dict[str, Any] | None]:
    return {
        variant: _mean([row["accuracy"][variant] for row in rows if variant in row["accuracy"]])
        for variant in variants
    }


def _mean(cells: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    values = [cell["values"] if cell else {} for cell in cells]
    whole = [seed for seed in values[0] if all(seed in one for one in values)]
    means = {seed: statistics.fmean(one[seed] for one in values) for seed in whole}
    return statistic(means) if means else None


def named(table: dict[str, Any], variant: str) -> str:
    """What a recipe is called: with its scorer, where others have another."""
    mixed = len(set(table["scorers"].values())) > 1
    return f"{variant}, {table['scorers'][variant]}" if mixed else variant


def _columns(table: dict[str, Any]) -> list[tuple[str, str | None, str]]:
    """(variant, OOD set, header) of each column; set None = the variant's ID accuracy."""
    several = len({name for names in table["sets"].values() for name in names}) > 1
    out: list[tuple[str, str | None, str]] = []
    for variant, names in table["sets"].items():
        out += [(variant, name, named(table, variant) + f", {name}" * several) for name in names]
        if any(row["accuracy"].get(variant) for row in table["rows"]):
            out.append((variant, None, f"{variant}, {accuracy_drop.COLUMN}"))
    return out


def in_words(table: dict[str, Any], deviation: str) -> Table:
    """What `tabulate` gave, in %; deviation: what stands behind ±."""
    shown = _columns(table)
    seen = [row["transductive"] for row in table["rows"]]
    any_case = {v: {name for one in seen for name in one.get(v, ())} for v in table["scorers"]}
    listed = list(table["rows"])
    if table["mean"]:
        numbers = {"auroc": table["mean"], "accuracy": table["mean_accuracy"]}
        listed.append({"case": "mean", "transductive": any_case} | numbers)
    first = next((variant for variant, name, _ in shown if name is None), None)
    drops = [accuracy_drop.lower(row["accuracy"], first) for row in listed]
    rows: Rows = [_row(table, shown, row, own) for row, own in zip(listed, drops, strict=True)]
    scorers = dict.fromkeys(table["scorers"].values())
    count = len(table["seeds"])
    notes = [f"± {deviation}; {count} seed{'s' * (count > 1)}."]
    if table["mean"]:
        notes.append("mean: over all cases, of each seed that has them all.")
    if table["missing"]:
        notes.append(f"{MISSING}: {table['missing']} of {table['runs']} runs are missing.")
    notes += accuracy_drop.notes(set().union(*drops), first)
    notes += [f"{transductive.MEANING}."] * any(any_case.values())
    return Table(
        f"{table['benchmark']}: AUROC in % of {', '.join(scorers)}",
        ("case", *(label for *_, label in shown)),
        rows,
        notes,
        1,
    )


def _row(
    table: dict[str, Any],
    shown: list[tuple[str, str | None, str]],
    row: dict[str, Any],
    drops: set[str],
) -> tuple[str, ...]:
    """One row's text; a recipe without such a case has an empty cell."""

    def cell(variant: str, ood: str | None) -> str:
        if variant not in row["auroc"]:
            return ""
        found = row["accuracy"][variant] if ood is None else row["auroc"][variant][ood]
        if found is None:
            return MISSING
        if ood is None:
            value = accuracy_drop.marked(percent(found), variant in drops)
        else:
            value = transductive.marked(percent(found), row["transductive"].get(variant, ()), ood)
        return value + f" (n = {found['n']})" * (found["n"] < len(table["seeds"]))

    return (row["case"], *(cell(variant, ood) for variant, ood, _ in shown))
