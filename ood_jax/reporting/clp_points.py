"""AUROC of single OOD classes beside their CLP: Winkens et al. (2020), Figs. 1 and 6."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ood_jax import metrics
from ood_jax.data.union import uncut
from ood_jax.reporting.blocks import clean
from ood_jax.reporting.clp_bins import Sample
from ood_jax.reporting.clp_read import Clp, Images, find, match
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import TEST, Run, groups, sources


class Point(NamedTuple):
    """One OOD class. auroc: percent, mean over seeds. images: as many in the first run."""

    set: str
    group: str
    name: str
    clp: float
    auroc: float
    images: int


class Judged(NamedTuple):
    """One variant against CLP.

    number: of the variant. inside: the set of CLP that it was trained on. sets: OOD set -> the set
    of CLP that it is. clp: OOD set -> CLP. group: OOD set -> near, far or other. points: by outside
    set of CLP and label. samples: of the runs that have images with a CLP.
    """

    number: int
    variant: Variant
    inside: str
    scorer: str
    sets: dict[str, str]
    clp: dict[str, float]
    group: dict[str, str]
    points: dict[tuple[str, int], Point]
    samples: tuple[Sample, ...]


class _Known(NamedTuple):
    """One OOD set of one run: scores float64 [N], clp float64 [N], NaN = none, labels int [N]."""

    run: Run
    scores: np.ndarray
    clp: np.ndarray
    labels: np.ndarray
    near: bool


class Notes(dict[str, list[str]]):
    """What is left out -> the variants that it is left out of."""

    def say(self, text: str, variant: str) -> None:
        """Once for each variant."""
        named = self.setdefault(clean(text), [])
        if variant not in named:
            named.append(variant)


def judge(
    number: int, variant: Variant, clp: Clp, by_image: dict[str, dict[str, Images]], notes: Notes
) -> Judged | None:
    """What CLP says of the variant's sets and their detection; None = nothing, and `notes` say why.

    by_image: inside -> what `clp_read.images` gives, {} = nothing.
    """
    first = variant.runs[0]
    for run in variant.runs:
        if TEST not in run.scores:
            notes.say(run.missing.get("scores", "no scores of the test set"), run.label)
    runs = [run for run in variant.runs if TEST in run.scores and run.primary == first.primary]
    inside, sets = matched(variant, clp, notes)
    if not (runs and inside and sets):
        return None
    group = {name: own for own, names in groups(first).items() for name in names if name in sets}
    looked: dict[str, list[_Known]] = {}
    for name in group:
        for run in runs:
            if name not in run.scores:
                notes.say(f"no scores of the OOD set {name} in scores.parquet", run.label)
            else:
                found = by_image[inside].get(sets[name])
                looked.setdefault(name, []).append(_look_up(run, name, found, notes))
    points: dict[tuple[str, int], Point] = {}
    for name, known in looked.items():
        points |= _points(known, clp, (inside, sets[name]), (name, group[name]))
        if not any(point.set == name for point in points.values()):
            reason = f"no class-wise points of {name}: its images have no labels with a CLP"
            notes.say(reason, variant.name)
    samples = [_sample([k for own in looked.values() for k in own if k.run is run]) for run in runs]
    kept = tuple(sample for sample in samples if sample is not None)
    whole = {name: clp.dataset[inside][other] for name, other in sets.items()}
    return Judged(number, variant, inside, first.primary, sets, whole, group, points, kept)


def matched(variant: Variant, clp: Clp, notes: Notes) -> tuple[str, dict[str, str]]:
    """(the in-distribution set's name in CLP, OOD set -> its name there); "" and {} = none."""
    first = variant.runs[0]
    named, known = sources(first), ", ".join(one.name for one in clp.sets)
    spec = named.get(TEST, "")
    own = match(clp, spec, str(first.config.get("score.benchmark") or ""))
    if own is None:
        text = f"the in-distribution test set {spec or 'without a source'} is none of {known}"
        notes.say(text, variant.name)
        return "", {}
    sets = {}
    for name in first.results["sets"]:
        other = match(clp, named.get(name, ""), name)
        if other is None:
            notes.say(f"the OOD set {name} is none of {known}", variant.name)
        elif other.name == own.name or other.name not in clp.dataset.get(own.name, {}):
            text = f"the OOD set {name} has no CLP: it is {other.name}, for {own.name} inside"
            notes.say(text, variant.name)
        else:
            sets[name] = other.name
    return own.name, sets


def _look_up(run: Run, name: str, found: Images | None, notes: Notes) -> _Known:
    """Labels are the run's own where they are those that CLP counts by, else CLP's."""
    own = run.scores[name]
    near = name in groups(run)["near"]
    nothing = _Known(run, own.scores, np.full(len(own.rows), np.nan), own.labels, near)
    if found is None:
        return nothing
    if found.source != uncut(sources(run).get(name, "").strip())[0]:
        notes.say(f"no image-wise CLP of {name}: its source is not {found.source}", run.label)
        return nothing
    values, labels = find(found, own.images)
    if lost := int((~np.isfinite(values)).sum()):
        text = f"{lost:,} of {len(values):,} images of {name} have no image-wise CLP"
        notes.say(text, run.label)
    there = labels >= 0
    same = np.array_equal(labels[there], own.labels[there])
    return nothing._replace(clp=values, labels=own.labels if same else labels)


def _points(
    known: Sequence[_Known], clp: Clp, pair: tuple[str, str], named: tuple[str, str]
) -> dict[tuple[str, int], Point]:
    """The classes of one OOD set. pair: inside, outside in CLP. named: the set and its group."""
    held = next(one for one in clp.sets if one.name == pair[1])
    of_class = clp.classwise.get(pair[0], {}).get(held.name, {})
    areas: dict[int, list[float]] = {}
    for one in known:
        inside = np.sort(one.run.scores[TEST].scores)
        for label in sorted(set(one.labels.tolist()) & of_class.keys()):
            area = metrics.auroc(inside, one.scores[one.labels == label])
            areas.setdefault(label, []).append(100 * area)
    return {
        (held.name, label): Point(
            *named,
            held.class_name(label),
            of_class[label],
            fmean(values),
            int(np.sum(known[0].labels == label)),
        )
        for label, values in sorted(areas.items())
    }


def _sample(known: Sequence[_Known]) -> Sample | None:
    """One run's images with a CLP, of all its OOD sets; None = there are none."""
    kept = [np.isfinite(one.clp) for one in known]
    if not any(rows.any() for rows in kept):
        return None
    columns = [
        (one.clp[rows], one.scores[rows], np.full(rows.sum(), one.near))
        for one, rows in zip(known, kept, strict=True)
    ]
    inside = np.sort(known[0].run.scores[TEST].scores)
    return Sample(inside, *map(np.concatenate, zip(*columns, strict=True)))
