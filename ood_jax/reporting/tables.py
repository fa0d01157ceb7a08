"""The tables of detection: variants and scorers as rows, OOD sets near and far as columns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ood_jax import accuracy_drop, transductive
from ood_jax.gather import baseline, percent
from ood_jax.reporting.blocks import Block, Body, Cell, Column, LeftOut, Table, Text, clean
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import groups

NONE = Cell("–")


class Metric(NamedTuple):
    """One table. key: in results.json. sign: 1 = higher is better, -1 = lower is."""

    key: str
    title: str
    meaning: str
    sign: int


METRICS = (
    Metric(
        "auroc",
        "AUROC, %",
        "Chance that an OOD image scores above an in-distribution test image; 50 is guessing."
        " Higher is better.",
        1,
    ),
    Metric(
        "fpr95_id_positive",
        "FPR@95, ID positive, %",
        "Share of OOD images accepted by the threshold that accepts 95 % of in-distribution test"
        " images (the convention of ODIN, Winkens et al. and MCD). Lower is better.",
        -1,
    ),
    Metric(
        "fpr95_ood_positive",
        "FPR@95, OOD positive, %",
        "Share of in-distribution test images rejected by the threshold that rejects 95 % of OOD"
        " images (the convention of OpenOOD). Lower is better.",
        -1,
    ),
    Metric(
        "aupr_out",
        "AUPR, OOD positive, %",
        "Average precision with OOD images as positives; guessing gives the share of OOD images."
        " Higher is better.",
        1,
    ),
    Metric(
        "aupr_in",
        "AUPR, ID positive, %",
        "Average precision with in-distribution images as positives; guessing gives their share."
        " Higher is better.",
        1,
    ),
)


class Place(NamedTuple):
    """A column: an OOD set, or the mean of a group. part: sets, near or far."""

    group: str
    part: str
    name: str


def detection(variants: Sequence[Variant]) -> list[Block]:
    """A table for each metric, best in bold, and what a reader must know of the means."""
    where = places(variants)
    if not where:
        return [LeftOut("No OOD set was scored: there is no table of detection.")]
    blocks: list[Block] = [Text(_notation(variants))]
    blocks += _left_out(variants, where)
    header = (Column(""), *columns(where))
    if any(accuracies(variants).values()):
        header += (Column(accuracy_drop.COLUMN),)
    for metric in METRICS:
        rows = _rows(variants, where, metric)
        if rows:
            blocks.append(Table(metric.title, metric.meaning, header, rows))
        else:
            blocks.append(LeftOut(f"No run has {metric.title.removesuffix(', %')}."))
    return blocks


def _notation(variants: Sequence[Variant]) -> str:
    text = "Bold: best of its column, baselines apart. Means are unweighted over the sets."
    if any(len(variant.runs) > 1 for variant in variants):
        text += " ±: sample standard deviation over seeds (divisor n − 1)."
    if _has_intervals(variants):
        text += " [low, high]: 95 % bootstrap interval over images, of a single run."
    stats = accuracies(variants)
    first = accuracy_drop.reference(stats)
    text = " ".join([text, *accuracy_drop.notes(accuracy_drop.lower(stats, first), first)])
    if any(_seen(variant) for variant in variants):
        text += f" {transductive.MEANING}."
    return text


def accuracies(variants: Sequence[Variant]) -> dict[str, dict[str, Any] | None]:
    """Variant -> the statistics of its ID accuracy, None = no accuracy."""
    return {v.name: v.numbers["in_distribution"].get("accuracy") for v in variants}


def _seen(variant: Variant) -> dict[str, Any]:
    """What `transductive.over_runs` tells of the variant's runs."""
    return transductive.over_runs(run.results | {"groups": groups(run)} for run in variant.runs)


def _has_intervals(variants: Sequence[Variant]) -> bool:
    return any(
        "auroc_low" in metrics and len(variant.runs) == 1
        for variant in variants
        for by_scorer in variant.numbers["sets"].values()
        for metrics in by_scorer.values()
    )


def _left_out(variants: Sequence[Variant], where: Sequence[Place]) -> list[Block]:
    parts = {place.part for place in where}
    out: list[Block] = [
        LeftOut(f"No {group} set: there is no mean of {group}.")
        for group in ("near", "far")
        if group not in parts
    ]
    return out + different_sets(variants)


def different_sets(variants: Sequence[Variant]) -> list[Block]:
    """A line for each group whose means are over other sets in some runs than in others."""
    out: list[Block] = []
    for group in ("near", "far"):
        sets = {tuple(groups(run)[group]) for variant in variants for run in variant.runs}
        if len(sets - {()}) > 1:
            out.append(LeftOut(f"The runs differ in their {group} sets: means do not compare."))
    return out


def places(variants: Sequence[Variant]) -> list[Place]:
    """near sets, their mean, far sets, their mean, sets of no group; as the first run has them."""
    group_of: dict[str, str] = {}
    for run in (run for variant in variants for run in variant.runs):
        for group, names in groups(run).items():
            for name in names:
                group_of.setdefault(name, group)
    out: list[Place] = []
    for group in ("near", "far", "other"):
        out += [Place(group, "sets", name) for name, own in group_of.items() if own == group]
        if any(variant.numbers.get(group) for variant in variants):
            out.append(Place(group, group, "mean"))
    return out


def columns(where: Sequence[Place]) -> tuple[Column, ...]:
    """The header over the cells of `where`."""
    return tuple(Column(clean(p.name), p.group, p.part != "sets") for p in where)


def _rows(variants: Sequence[Variant], where: Sequence[Place], metric: Metric) -> tuple[Body, ...]:
    own = [(v, s) for v in variants for s in scorers(v) if not baseline(s)]
    best = [_best([found(v, p, s, metric.key) for v, s in own], metric.sign) for p in where]
    stats = accuracies(variants)
    drops = accuracy_drop.lower(stats, accuracy_drop.reference(stats))

    def row(v: Variant, s: str) -> tuple[Cell, ...]:
        tops = [None if baseline(s) else top for top in best]
        cells = tuple(cell(v, p, s, metric.key, t) for p, t in zip(where, tops, strict=True))
        if not any(stats.values()):
            return cells
        stat = None if baseline(s) or all(one == NONE for one in cells) else stats[v.name]
        return (*cells, NONE if stat is None else accuracy_cell(stat, v.name in drops))

    return bodies(variants, row)


def bodies(
    variants: Sequence[Variant], row: Callable[[Variant, str], tuple[Cell, ...]]
) -> tuple[Body, ...]:
    """`row` of every variant and scorer, those without a number left out, baselines at the end.

    One body a variant; where all have one and the same scorer, one body with a row for each.
    """
    filled = [(v, s, row(v, s)) for v in variants for s in scorers(v)]
    filled = [(v, s, cells) for v, s, cells in filled if any(c != NONE for c in cells)]
    own = [one for one in filled if not baseline(one[1])]
    if len({s for _, s, _ in own}) == 1:
        rows = tuple((Cell(counted(v)), *cells) for v, _, cells in own)
        out = [Body(clean(own[0][1]), rows)]
    else:
        by_variant = {counted(v): [one for one in own if one[0] is v] for v in variants}
        out = [
            Body(title, tuple((Cell(clean(s)), *cells) for _, s, cells in ones))
            for title, ones in by_variant.items()
            if ones
        ]
    apart = tuple(
        (Cell(clean(f"{v.name}: {s}" if len(variants) > 1 else s)), *cells)
        for v, s, cells in filled
        if baseline(s)
    )
    return tuple([*out, Body("Baselines", apart)] if apart else out)


def counted(variant: Variant) -> str:
    """The variant's name and how many seeds are behind its numbers."""
    count = len(variant.runs)
    return clean(variant.name + (f" ({count} seeds)" if count > 1 else ""))


def scorers(variant: Variant) -> list[str]:
    """All that the variant's sets were scored with, in the results' order."""
    sets = variant.numbers["sets"].values()
    return list(dict.fromkeys(name for by_scorer in sets for name in by_scorer))


def found(variant: Variant, place: Place, scorer: str, key: str) -> dict[str, Any] | None:
    """The statistics of one number, None where there is none."""
    tree = variant.numbers[place.part]
    by_scorer = tree.get(place.name, {}) if place.part == "sets" else tree
    return by_scorer.get(scorer, {}).get(key)


def _best(stats: Sequence[dict[str, Any] | None], sign: int) -> float | None:
    """The best mean as it is printed, so that equal numbers are bold together."""
    values = [sign * _printed(stat) for stat in stats if stat is not None]
    return sign * max(values) if values else None


def _printed(stat: dict[str, Any]) -> float:
    return round(100 * stat["mean"], 2)


def cell(v: Variant, place: Place, scorer: str, key: str, best: float | None = None) -> Cell:
    """A fraction in percent with its deviation over seeds, or its interval of a single run.

    With the sign of transductive sets, and of means over any.
    """
    stat = found(v, place, scorer, key)
    if stat is None:
        return NONE
    out = percent_cell(stat)
    if stat["n"] == 1:
        low, high = (found(v, place, scorer, f"{key}_{end}") for end in ("low", "high"))
        out = Cell(percent(stat), f"[{percent(low)}, {percent(high)}]" if low and high else "")
    seen = _seen(v).get("sets" if place.part == "sets" else "groups", ())
    text = transductive.marked(out.text, seen, place.name if place.part == "sets" else place.part)
    return out._replace(text=text, best=best == _printed(stat))


def accuracy_cell(stat: dict[str, Any], drop: bool) -> Cell:
    """An accuracy in percent, marked where it dropped."""
    out = percent_cell(stat)
    return out._replace(text=accuracy_drop.marked(out.text, drop))


def percent_cell(stat: dict[str, Any]) -> Cell:
    """A fraction in percent with its deviation over seeds."""
    text, _, deviation = percent(stat).partition(" ± ")
    return Cell(text, f"± {deviation}" if deviation else "")
