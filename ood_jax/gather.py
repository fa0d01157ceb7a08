"""Results of many runs as one table: mean and deviation over seeds, of every number."""

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ood_jax.atomic import replaced
from ood_jax.runs import Run, finished

DEVIATION = "sample standard deviation over seeds (divisor n - 1)"
PARTS = ("in_distribution", "sets", "near", "far")
Rows = list[tuple[str, ...]]


def gather(runs: Sequence[Run]) -> dict[str, Any]:
    """All finished runs' numbers, as ROOT/sweep.json holds them.

    {"schema": 1, "deviation", "runs": [{"variant", "seed", "workdir", "finished"}], "variants":
    {VARIANT: {"recipe", "settings", "in_distribution", "sets", "near", "far"}}}: the parts have
    the shape that results.json gives them, with each number x replaced by
    {"mean", "std" (null for one seed), "n", "values": {SEED: x}}.
    """
    listed: list[dict[str, Any]] = []
    variants: dict[str, dict[str, Any]] = {}
    by_variant: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for run in runs:
        found = finished(run)
        listed.append(
            {
                "variant": run.variant,
                "seed": run.seed,
                "workdir": str(run.workdir),
                "finished": found is not None,
            }
        )
        variants[run.variant] = {"recipe": run.recipe, "settings": run.settings}
        if found is not None:
            by_variant.setdefault(run.variant, []).append((run.seed, found))
    for variant, found_runs in by_variant.items():
        for part in PARTS:
            trees = [(seed, found.get(part) or {}) for seed, found in found_runs]
            variants[variant][part] = merged(trees)
    return {"schema": 1, "deviation": DEVIATION, "runs": listed, "variants": variants}


def merged(trees: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Trees, (seed, tree) -> the tree of their statistics; text and nulls are left out.

    Each number x is replaced by {"mean", "std" (null for one seed), "n", "values": {SEED: x}}.
    """
    out: dict[str, Any] = {}
    for key in dict.fromkeys(key for _, tree in trees for key in tree):
        inner = [(seed, tree[key]) for seed, tree in trees if key in tree]
        branches = [(seed, value) for seed, value in inner if isinstance(value, dict)]
        numbers = {str(seed): value for seed, value in inner if _is_number(value)}
        if branches:
            out[key] = merged(branches)
        elif numbers:
            out[key] = _statistics(numbers)
    return out


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _statistics(values: dict[str, float]) -> dict[str, Any]:
    numbers = list(values.values())
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": spread, "n": len(numbers), "values": values}


def auroc_rows(gathered: dict[str, Any]) -> Rows:
    """(variant, OOD set, scorer, AUROC in %, n), in the results' order, means last."""
    rows: Rows = []
    for variant, parts in gathered["variants"].items():
        sets = dict(parts.get("sets", {}))
        sets |= {f"mean of {part}": parts[part] for part in ("near", "far") if parts.get(part)}
        for name, scorers in sets.items():
            for scorer, metrics in scorers.items():
                if "auroc" in metrics:
                    stat = metrics["auroc"]
                    rows.append((variant, name, scorer, percent(stat), str(stat["n"])))
    return rows


def in_distribution_rows(gathered: dict[str, Any]) -> Rows:
    """(variant, measure, value, n): kNN accuracy, sensitivity, occupied soft-classes; no counts."""
    return [
        (variant, name, _measure(stat), str(stat["n"]))
        for variant, parts in gathered["variants"].items()
        for name, stat in _leaves(parts.get("in_distribution", {}))
        if any(isinstance(value, float) for value in stat["values"].values())
    ]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        if "values" in value:
            yield prefix + key, value
        else:
            yield from _leaves(value, f"{prefix}{key}.")


def percent(stat: dict[str, Any]) -> str:
    """A fraction as `92.51 ± 0.32`; one seed has no deviation."""
    mean = f"{100 * stat['mean']:.2f}"
    return mean if stat["std"] is None else f"{mean} ± {100 * stat['std']:.2f}"


def _measure(stat: dict[str, Any]) -> str:
    if 0 <= stat["mean"] <= 1:
        return f"{percent(stat)} %"
    return f"{stat['mean']:.4g}" + (f" ± {stat['std']:.2g}" if stat["std"] is not None else "")


HEADERS = (
    ("OOD detection", ("variant", "OOD set", "scorer", "AUROC, %", "n"), auroc_rows),
    ("In distribution", ("variant", "measure", "value", "n"), in_distribution_rows),
)


def markdown(gathered: dict[str, Any]) -> str:
    """The tables of ROOT/sweep.md."""
    lines = [f"± is the {gathered['deviation']}; n = seeds.", ""]
    for title, header, rows in HEADERS:
        lines += [f"## {title}", "", _line(header), _line(["---"] * len(header))]
        lines += [*map(_line, rows(gathered)), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(gathered: dict[str, Any]) -> None:
    """The same tables on the screen."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, header, rows in HEADERS:
        table = Table(title=title, caption=f"± {gathered['deviation']}")
        for name in header:
            table.add_column(
                name, justify="right" if name in ("AUROC, %", "value", "n") else "left"
            )
        for row in rows(gathered):
            table.add_row(*map(Text, row))
        if table.row_count:
            console.print(table)


def write(gathered: dict[str, Any], root: str | Path) -> None:
    """ROOT/sweep.json and ROOT/sweep.md; a kill leaves the old files or the new.

    Raises:
      ValueError: they cannot be written there.
    """
    texts = {
        "sweep.json": json.dumps(gathered, indent=1, allow_nan=False) + "\n",
        "sweep.md": markdown(gathered),
    }
    for name, text in texts.items():
        with replaced(Path(root) / name) as fresh:
            fresh.write_text(text, encoding="utf-8")
