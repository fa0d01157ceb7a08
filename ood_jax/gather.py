"""Results of many runs as one table: mean and deviation over seeds, of every number."""

import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from ood_jax import accuracy_drop, ranks, transductive
from ood_jax.atomic import replaced
from ood_jax.place import place
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
    "ood_rank_left_out" [REASON, ...]; one with sets whose images were in training "transductive",
    see `transductive.over_runs`. VARIANT is `Run.row`: each case of a benchmark is one.
    """
    listed: list[dict[str, Any]] = []
    variants: dict[str, dict[str, Any]] = {}
    by_variant: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    workdirs: dict[str, dict[int, epath.Path]] = {}
    for run in runs:
        found = finished(run)
        listed.append(
            {
                "variant": run.row,
                "seed": run.seed,
                "workdir": str(run.workdir),
                "finished": found is not None,
            }
        )
        variants[run.row] = {"recipe": run.recipe, "settings": run.settings}
        if found is not None:
            by_variant.setdefault(run.row, []).append((run.seed, found))
            workdirs.setdefault(run.row, {})[run.seed] = run.workdir
    for variant, found_runs in by_variant.items():
        for part in PARTS:
            parts = [(seed, found.get(part)) for seed, found in found_runs]
            trees = [(seed, held) for seed, held in parts if isinstance(held, dict)]
            variants[variant][part] = merged(trees)
        if seen := transductive.over_runs(found for _, found in found_runs):
            variants[variant]["transductive"] = seen
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
            out[key] = statistic(numbers)
    return out


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def statistic(values: dict[str, float]) -> dict[str, Any]:
    """{SEED: x} -> {"mean", "std" (null for one seed), "n", "values"}."""
    numbers = list(values.values())
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": spread, "n": len(numbers), "values": values}


def is_statistic(value: Any) -> bool:
    """Is it what `statistic` returns? A results.json may have anything where a number should be."""
    return isinstance(value, dict) and isinstance(value.get("n"), int)


def auroc_rows(gathered: dict[str, Any]) -> Rows:
    """(variant, OOD set, scorer, AUROC in %, ID accuracy in %, n, spread of OOD ranks), in the
    results' order.

    Means are last. What has no accuracy or spread has "" there.
    """
    rows: Rows = []
    stats = accuracies(gathered)
    drops = accuracy_drop.lower(stats, accuracy_drop.reference(stats))
    for variant, parts in gathered["variants"].items():
        held = stats[variant]
        own = accuracy_drop.marked(percent(held), variant in drops) if held else ""
        sets, spread = dict(parts.get("sets", {})), parts.get("ood_rank_spread", {})
        sets |= {f"mean of {part}": parts[part] for part in ("near", "far") if parts.get(part)}
        seen = parts.get("transductive", {})
        marks = {*seen.get("sets", ()), *(f"mean of {group}" for group in seen.get("groups", ()))}
        sets = {name: one for name, one in sets.items() if not is_statistic(one)}
        for name, scorers in sets.items():
            for scorer, metrics in scorers.items():
                stat = metrics.get("auroc") if isinstance(metrics, dict) else None
                if stat is not None and is_statistic(stat):
                    rank = spread.get(name, {}).get(scorer)
                    last = "" if rank is None else f"{rank:.1f}"
                    shown = transductive.marked(name, marks)
                    cells = (percent(stat), "" if baseline(scorer) else own, str(stat["n"]))
                    rows.append((variant, shown, scorer, *cells, last))
    return rows


def accuracies(gathered: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Variant -> its ID accuracy as `statistic` has it, None = no accuracy."""
    found = {
        variant: parts.get("in_distribution", {}).get("accuracy")
        for variant, parts in gathered["variants"].items()
    }
    return {variant: stat if is_statistic(stat) else None for variant, stat in found.items()}


def baseline(scorer: str) -> bool:
    """Is it a score on raw pixels or on the untrained network?"""
    return "@" in scorer


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
        if is_statistic(value):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def percent(stat: dict[str, Any]) -> str:
    """A fraction as `92.51 ± 0.32`; one seed has no deviation."""
    mean = f"{100 * stat['mean']:.2f}"
    return mean if stat["std"] is None else f"{mean} ± {100 * stat['std']:.2f}"


def _measure(stat: dict[str, Any]) -> str:
    if 0 <= stat["mean"] <= 1:
        return f"{percent(stat)} %"
    return f"{stat['mean']:.4g}" + (f" ± {stat['std']:.2g}" if stat["std"] is not None else "")


class Table(NamedTuple):
    """A table of text. left: how many columns are words; numbers follow, set to the right."""

    title: str
    header: tuple[str, ...]
    rows: Rows
    notes: list[str]
    left: int


AUROC, SPREAD = "AUROC, %", "OOD rank, spread"
DETECTION = ("variant", "OOD set", "scorer", AUROC, accuracy_drop.COLUMN, "n", SPREAD)
IN_DISTRIBUTION = ("variant", "measure", "value", "n")


def tables(gathered: dict[str, Any]) -> list[Table]:
    """What a sweep shows; accuracies and spreads of OOD ranks where there are any."""
    every, of_some = auroc_rows(gathered), (accuracy_drop.COLUMN, SPREAD)
    shown = [
        i for i, name in enumerate(DETECTION) if name not in of_some or any(r[i] for r in every)
    ]
    header = tuple(DETECTION[i] for i in shown)
    rows = [tuple(row[i] for i in shown) for row in every]
    notes = [f"± {gathered['deviation']}; n = seeds."]
    more = _notes(gathered, SPREAD in header)
    return [
        Table("OOD detection", header, rows, [*notes, *more], 3),
        Table("In distribution", IN_DISTRIBUTION, in_distribution_rows(gathered), notes, 2),
    ]


def _notes(gathered: dict[str, Any], filled: bool) -> list[str]:
    """What the spread of OOD ranks is, and where there is none; what the signs mean."""
    meaning = (
        f"{SPREAD}: mean over images of the deviation of an image's OOD rank (percent) over seeds."
    )
    absent = [
        f"No {SPREAD} of {variant}: {'; '.join(parts['ood_rank_left_out'])}."
        for variant, parts in gathered["variants"].items()
        if parts.get("ood_rank_left_out")
    ]
    seen = any(parts.get("transductive") for parts in gathered["variants"].values())
    stats = accuracies(gathered)
    first = accuracy_drop.reference(stats)
    drops = accuracy_drop.notes(accuracy_drop.lower(stats, first), first)
    return [meaning] * filled + absent + drops + [f"{transductive.MEANING}."] * seen


def markdown(shown: Iterable[Table]) -> str:
    """Tables as Markdown."""
    lines: list[str] = []
    for table in shown:
        lines += [f"## {table.title}", "", *(line for note in table.notes for line in (note, ""))]
        rule = ["---" if i < table.left else "---:" for i in range(len(table.header))]
        lines += [_line(table.header), _line(rule), *map(_line, table.rows), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(shown: Iterable[Table]) -> None:
    """Tables on the screen; those without a row are left out."""
    from rich.console import Console
    from rich.table import Table as Screen
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in shown:
        screen = Screen(title=Text(table.title), caption=Text("\n".join(table.notes)))
        for i, name in enumerate(table.header):
            screen.add_column(Text(name), justify="left" if i < table.left else "right")
        for row in table.rows:
            screen.add_row(*map(Text, row))
        if screen.row_count:
            console.print(screen)


def write(gathered: dict[str, Any], text: str, root: epath.PathLike, name: str) -> epath.Path:
    """ROOT/NAME.json with `gathered`, ROOT/NAME.md with `text` -> the former.

    A kill leaves the old files or the new.

    Raises:
      ValueError: they cannot be written there.
    """
    texts = {".json": json.dumps(gathered, indent=1, allow_nan=False) + "\n", ".md": text}
    for ending, content in texts.items():
        with replaced(place(root) / (name + ending)) as fresh:
            fresh.write_text(content, encoding="utf-8")
    return place(root) / f"{name}.json"
