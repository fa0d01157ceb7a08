"""Results of many runs as one table: mean and deviation over seeds, of every number."""

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ood_jax import ranks
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
    {"mean", "std" (null for one seed), "n", "values": {SEED: x}}. A variant of two finished seeds
    or more has "ood_rank_spread" {SET: {SCORER: points}} as well, see `ranks.spread`, and
    "ood_rank_left_out" [REASON, ...].
    """
    listed: list[dict[str, Any]] = []
    variants: dict[str, dict[str, Any]] = {}
    by_variant: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    workdirs: dict[str, dict[int, Path]] = {}
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
            workdirs.setdefault(run.variant, {})[run.seed] = run.workdir
    for variant, found_runs in by_variant.items():
        for part in PARTS:
            trees = [(seed, found.get(part) or {}) for seed, found in found_runs]
            variants[variant][part] = merged(trees)
        if len(found_runs) > 1:
            spread = ranks.spread(workdirs[variant])
            variants[variant] |= {
                "ood_rank_spread": spread.points,
                "ood_rank_left_out": list(spread.left_out),
            }
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
    """(variant, OOD set, scorer, AUROC in %, n, spread of OOD ranks), in the results' order.

    Means are last.
    """
    rows: Rows = []
    for variant, parts in gathered["variants"].items():
        sets, spread = dict(parts.get("sets", {})), parts.get("ood_rank_spread", {})
        sets |= {f"mean of {part}": parts[part] for part in ("near", "far") if parts.get(part)}
        for name, scorers in sets.items():
            for scorer, metrics in scorers.items():
                if "auroc" in metrics:
                    stat = metrics["auroc"]
                    rank = spread.get(name, {}).get(scorer)
                    last = "" if rank is None else f"{rank:.1f}"
                    rows.append((variant, name, scorer, percent(stat), str(stat["n"]), last))
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


AUROC, SPREAD = "AUROC, %", "OOD rank, spread"
HEADERS = (
    ("OOD detection", ("variant", "OOD set", "scorer", AUROC, "n", SPREAD), auroc_rows),
    ("In distribution", ("variant", "measure", "value", "n"), in_distribution_rows),
)


def _tables(gathered: dict[str, Any]) -> Iterator[tuple[str, Rows, list[str]]]:
    """(title, header and rows, notes); a last column without any number is left out."""
    for title, names, of in HEADERS:
        header: tuple[str, ...] = names
        rows = of(gathered)
        notes = [f"± {gathered['deviation']}; n = seeds."]
        if SPREAD in header:
            filled = any(row[-1] for row in rows)
            notes += _notes(gathered, filled)
            if not filled:
                header, rows = header[:-1], [row[:-1] for row in rows]
        yield title, [header, *rows], notes


def _notes(gathered: dict[str, Any], filled: bool) -> list[str]:
    """What the spread of OOD ranks is, and where there is none."""
    meaning = (
        f"{SPREAD}: mean over images of the deviation of an image's OOD rank (percent) over seeds."
    )
    absent = [
        f"No {SPREAD} of {variant}: {'; '.join(parts['ood_rank_left_out'])}."
        for variant, parts in gathered["variants"].items()
        if parts.get("ood_rank_left_out")
    ]
    return [meaning] * filled + absent


def markdown(gathered: dict[str, Any]) -> str:
    """The tables of ROOT/sweep.md."""
    lines: list[str] = []
    for title, (header, *rows), notes in _tables(gathered):
        lines += [f"## {title}", "", *(line for note in notes for line in (note, ""))]
        lines += [_line(header), _line(["---"] * len(header)), *map(_line, rows), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(gathered: dict[str, Any]) -> None:
    """The same tables on the screen."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, (header, *rows), notes in _tables(gathered):
        table = Table(title=title, caption=Text("\n".join(notes)))
        for name in header:
            right = name in (AUROC, SPREAD, "value", "n")
            table.add_column(name, justify="right" if right else "left")
        for row in rows:
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
