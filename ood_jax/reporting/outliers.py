"""The outliers that runs mined or generated, and where they came from: Gao et al., Figs. 4, 5."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import plots
from ood_jax.outlier_facts import MAPPED, warning
from ood_jax.outliers import PROVENANCE
from ood_jax.reporting.blocks import (
    Block,
    Body,
    Cell,
    Column,
    LeftOut,
    Panel,
    Panels,
    Picture,
    Table,
    Text,
    clean,
    short,
)
from ood_jax.reporting.outliers_read import SIDES, Map, Outliers
from ood_jax.reporting.projection import frame, scatter
from ood_jax.reporting.tables import NONE
from ood_jax.reporting.variants import Variant, shown
from ood_jax.reporting.workdirs import Run, flat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANING = (
    "What stages of the runs made to be trained on as outliers: near ones, mined at the boundary of"
    " the train embeddings, and far ones, generated. KL: of Gaussians fitted to every dimension,"
    " train embeddings against outliers, mean over dimensions; 0 = alike. Separability: how well"
    " two k-means clusters are the two sets; 0.5 = the clusters tell nothing of them, 1 = they are"
    " the sets. Distances: to the nearest train embedding, both of norm 1, so from 0 to 2; of train"
    " embeddings to the nearest other."
)
NUMBERS = "Distances: median; [low, high]: 5 to 95 %. –: of another width than the embeddings."
MAP = (
    f"First two principal axes of train embeddings and outliers, at most {MAPPED} of each, both"
    " sets weighed the same; percent: of their variance."
)
DECODED = "Decoded from the first outliers by the model's own decoder."
LONGEST = 400  # letters of settings


def wanted(runs: Sequence[Run]) -> bool:
    """Has a run made outliers?"""
    return any(run.outliers or "outliers" in run.missing for run in runs)


def outliers(variants: Sequence[Variant]) -> list[Block]:
    """All runs' numbers and provenance; maps and pictures of each variant's first run."""
    runs = [run for variant in variants for run in variant.runs]
    out: list[Block] = [Text(MEANING)]
    for run in runs:
        if "outliers" in run.missing:
            out.append(LeftOut(clean(f"{run.label}: {run.missing['outliers']}.")))
        out += [
            Text(clean(f"{run.label}, {_named(stage, own)}: {said}."))
            for stage, own in run.outliers.items()
            if own.distances is not None and (said := warning(own.distances))
        ]
    made = [run for run in runs if run.outliers]
    if made:
        out += [_numbers(made), _origins(made)]
    if len(variants) < len(runs):
        out.append(Text("Below: of the first run of each row of the tables."))
    for number, variant in enumerate(variants, 1):
        out += _drawn(variant.runs[0], number)
    return out


def _named(stage: str, own: Outliers) -> str:
    return f"{stage} ({own.kind})" if stage else own.kind


def _bodies(runs: Sequence[Run], row: Any) -> tuple[Body, ...]:
    """`row` of every stage's outliers, behind their name, under the run's."""
    return tuple(
        Body(
            clean(run.label),
            tuple((Cell(clean(_named(s, own))), *row(own)) for s, own in run.outliers.items()),
        )
        for run in runs
    )


def _numbers(runs: Sequence[Run]) -> Table:
    header = ["", "number", "width", "KL, nats", "separability"]
    columns = [Column(text) for text in header]
    columns += [Column(side, "distance to train") for side in SIDES]
    return Table("Outliers", NUMBERS, tuple(columns), _bodies(runs, _row))


def _row(own: Outliers) -> tuple[Cell, ...]:
    known = [
        NONE if value is None else Cell(f"{value:.4g}")
        for value in (own.gaussian_kl, own.separability)
    ]
    distances = [NONE if own.distances is None else _spread(own.distances[s]) for s in SIDES]
    return (Cell(f"{own.number:,}"), Cell(f"{own.width:,}"), *known, *distances)


def _spread(quantiles: dict[str, float]) -> Cell:
    low, middle, high = (f"{quantiles[q]:.3g}" for q in ("0.05", "0.5", "0.95"))
    return Cell(middle, f"[{low}, {high}]")


def _origins(runs: Sequence[Run]) -> Table:
    header = tuple(map(Column, ("", *PROVENANCE, "more")))
    return Table("Where the outliers came from", "", header, _bodies(runs, _origin), numeric=False)


def _origin(own: Outliers) -> tuple[Cell, ...]:
    held = own.provenance
    more = {name: value for name, value in held.items() if name not in PROVENANCE}
    return tuple(Cell(_compact(value)) for value in (*map(held.get, PROVENANCE), more))


def _compact(value: Any) -> str:
    """JSON as a.b=1, c=x."""
    if isinstance(value, dict):
        value = ", ".join(f"{key}={_plain(one)}" for key, one in flat(value).items()) or None
    return short(_plain(value), LONGEST)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else shown(value)


def _drawn(run: Run, number: int) -> list[Block]:
    panels = tuple(
        _panel(run, f"outliers-{number}-{index}", _named(stage, own), own.kind, own.map)
        for index, (stage, own) in enumerate(run.outliers.items(), 1)
        if own.map is not None
    )
    out: list[Block] = [Panels(clean(f"{run.label}: map"), MAP, panels)] if panels else []
    for index, (stage, image) in enumerate(run.pictures.items(), 1):
        title = clean(f"{run.label}: outliers of {stage or 'the run'} as images")
        out.append(Picture(f"outliers-{number}-pictures-{index}", title, DECODED, title, image))
    return out


def _panel(run: Run, file: str, name: str, kind: str, points: Map) -> Panel:
    def draw(panel: "Axes") -> None:
        scatter(panel, points.inside, {f"{kind} outliers": points.outliers}, "train")
        frame(panel, np.concatenate([points.inside, points.outliers]))
        axes = [f"axis {i}, {100 * share:.0f} %" for i, share in enumerate(points.explained, 1)]
        panel.set(xticks=[], yticks=[], xlabel=axes[0], ylabel=axes[1])
        panel.set_title(short(name, 34), loc="left")

    alt = f"{run.label}, {name}: train embeddings and outliers on two principal axes"
    return Panel(file, clean(alt), plots.svg(draw, file, (240, 270)))
