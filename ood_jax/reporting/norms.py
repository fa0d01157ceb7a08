"""Norms of contrastive features over training: Le-Gia & Ahn, section III and appendix B."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ood_jax.gather import merged
from ood_jax.reporting.blocks import (
    Block,
    Body,
    Cell,
    Column,
    LeftOut,
    Panels,
    Table,
    Text,
    clean,
)
from ood_jax.reporting.norms_figures import Path, named, over_steps, trade_off
from ood_jax.reporting.norms_read import FILE, SCORES, Norms
from ood_jax.reporting.tables import NONE, counted, percent_cell
from ood_jax.reporting.variants import Variant, seed
from ood_jax.reporting.workdirs import Run

S_L2, S_MU = SCORES.values()
MEANING = (
    "f: the contrastive feature before it is normalised. Over the clean image and random views t of"
    " it, μ = |E f(t(x))|, and σ and σ_V are the deviations of f along that mean and across it:"
    f" E|f(t(x))|² = μ² + σ² + σ_V². Large in distribution: {S_L2} = |f(x)|² and {S_MU} = μ²."
)
OVER_STEPS = (
    "Below, over training steps: means over the images of a set; band: 5 to 95 % of test images. In"
    " the paper (Figs. 1 and 2, trained without outliers) norms rise, then fall, and those of"
    " in-distribution images stay larger; σ_V hardly differs between sets, and μ/σ_V does. AUROC:"
    " of test images against each of the other sets; grey: guessing."
)
TRADE_OFF = (
    "Of test images; each run is a path over its checkpoints, which ends at the mark. Alignment:"
    " squared distance between the directions of two views of an image. Uniformity: log of the mean"
    " of exp(−squared distance) over pairs of images. In the paper (Fig. 6) runs that weight one of"
    " the two too much detect worse; with alignment alone all images fall together, which is 1"
    " here. AUROC: mean over the OOD sets."
)
COLUMNS = {  # name in Norms.values -> heading
    "norm": "|f|",
    "mu": "μ",
    "sigma": "σ",
    "sigma_v": "σ_V",
    "mu_over_sigma_v": "μ/σ_V",
    "alignment": "alignment",
    "uniformity": "exp(uniformity)",
}
OF_RUN = ("norm", "mu_over_sigma_v", "alignment", "uniformity")


class Measured(NamedTuple):
    """A variant and its runs that have norms, one or more. number: of the variant."""

    number: int
    variant: Variant
    runs: tuple[tuple[Run, Norms], ...]


def wanted(runs: Sequence[Run]) -> bool:
    """Has a run norms.json, or was one trained so that it could have it?"""
    names = {name.rpartition("/")[2] for run in runs for row in run.metrics for name in row}
    there = any(run.missing.get("norms") != f"no {FILE}" for run in runs)
    return there or "projection_norm" in names


def norms(variants: Sequence[Variant]) -> list[Block]:
    """Each variant's first run over its steps; then all runs' paths, and numbers at the end."""
    every = [
        Measured(i, one, tuple((run, run.norms) for run in one.runs if run.norms is not None))
        for i, one in enumerate(variants)
    ]
    found = [one for one in every if one.runs]
    absent = [_absent(run) for one in variants for run in one.runs if run.norms is None]
    if not found:
        return absent
    out: list[Block] = [Text(f"{MEANING} {_sizes(found)}"), *absent, Text(OVER_STEPS)]
    if any(len(one.runs) > 1 for one in found):
        out.append(Text("Shown for the first run of each row of the tables."))
    for one in found:
        run, own = one.runs[0]
        panels = over_steps(own, run.label, one.number + 1)
        out.append(Panels(clean(run.label), "", panels))
        if len(own.steps) == 1:
            text = "has one checkpoint, so there is no curve; train.keep_every keeps more."
            out.append(LeftOut(clean(f"{run.label} {text}")))
    paths = [_path(one, own) for one in found for _, own in one.runs]
    out.append(Panels("Alignment and uniformity", TRADE_OFF, trade_off(paths)))
    return [*out, *_by_run(found), _by_set(found)]


def _absent(run: Run) -> Block:
    how = f"python -m ood_jax.norms --workdir={run.workdir} writes it, of contrastive runs"
    return LeftOut(clean(f"{run.label}: {run.missing['norms']}; {how}."))


def _sizes(found: Sequence[Measured]) -> str:
    sizes = {(own.images, own.augmentations) for one in found for _, own in one.runs}
    listed = "; ".join(f"{images:,} images, {views} views" for images, views in sorted(sizes))
    return f"Measured on at most: {listed}."


def _auroc(own: Norms, score: str) -> np.ndarray:
    """Mean over the OOD sets, in [0, 1]: float64 [S]; NaN where one has none."""
    each = [own.values[name][score] for name in own.outside()]
    return np.mean(each, axis=0) if each else np.full(len(own.steps), np.nan)


def _path(one: Measured, own: Norms) -> Path:
    inside = own.values["test"]
    return Path(
        one.number,
        one.variant.name,
        inside["alignment"],
        inside["uniformity"],
        100 * _auroc(own, S_MU),
    )


def _by_run(found: Sequence[Measured]) -> list[Block]:
    """A row for each variant, with deviations over seeds; where there are two runs or more."""
    if sum(len(one.runs) for one in found) < 2:
        return []
    rows = []
    for one in found:
        stats = merged([(seed(run), _at_end(own)) for run, own in one.runs])
        numbers = [_cell(stats.get(name)) for name in OF_RUN]
        aurocs = [percent_cell(stats[s]) if s in stats else NONE for s in (S_L2, S_MU)]
        rows.append((Cell(counted(one.variant)), *numbers, *aurocs))
    header = [Column(""), *(Column(COLUMNS[name], "test images") for name in OF_RUN)]
    header += [Column(score, "mean AUROC, %") for score in (S_L2, S_MU)]
    caption = "At the last checkpoint. AUROC: mean over the OOD sets."
    title = "Norms, alignment and uniformity of the runs"
    return [Table(title, caption, tuple(header), (Body("", tuple(rows)),))]


def _at_end(own: Norms) -> dict[str, float]:
    """A run's numbers at its last checkpoint, by names of COLUMNS and SCORES."""
    inside = {name: float(own.values["test"][name][-1]) for name in OF_RUN}
    inside["uniformity"] = float(np.exp(inside["uniformity"]))
    return inside | {score: float(_auroc(own, score)[-1]) for score in (S_L2, S_MU)}


def _by_set(found: Sequence[Measured]) -> Table:
    """All numbers of each variant's first run, a row for each set."""
    bodies = []
    for one in found:
        run, own = one.runs[0]
        rows = tuple(_row(own, name) for name in own.roles)
        bodies.append(Body(clean(f"{run.label}, step {own.steps[-1]:,.0f}"), rows))
    header = (
        Column(""),
        *map(Column, COLUMNS.values()),
        *(Column(score, "AUROC, %") for score in (S_L2, S_MU)),
    )
    caption = (
        "Means over images; [low, high]: 5 to 95 % of them. AUROC: of test images against the set."
    )
    return Table("Norms at the last checkpoint", caption, header, tuple(bodies))


def _row(own: Norms, name: str) -> tuple[Cell, ...]:
    last = {key: float(values[-1]) for key, values in own.values[name].items()}
    last["uniformity"] = float(np.exp(last["uniformity"]))
    cells = [_cell({"mean": last[key], "std": None}) for key in COLUMNS]
    if np.isfinite([last["q05"], last["q95"]]).all():
        cells[0] = cells[0]._replace(spread=f"[{last['q05']:.4g}, {last['q95']:.4g}]")
    aurocs = [
        Cell(f"{100 * last[score]:.2f}") if np.isfinite(last.get(score, np.nan)) else NONE
        for score in (S_L2, S_MU)
    ]
    return (Cell(clean(named(own, name))), *cells, *aurocs)


def _cell(stat: dict[str, Any] | None) -> Cell:
    if stat is None or not np.isfinite(stat["mean"]):
        return NONE
    return Cell(f"{stat['mean']:.4g}", f"± {stat['std']:.2g}" if stat["std"] is not None else "")
