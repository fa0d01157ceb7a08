"""AUROC against what is known without OOD data: Rafiee et al. (2022), Figs. 2 and 3."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ood_jax import plots
from ood_jax.reporting.blocks import Block, LeftOut, Panel, Panels, short
from ood_jax.reporting.tables import different_sets
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {
    "sensitivity_auroc": "sensitivity, %",
    "occupied_classes": "occupied soft-classes, %",
}
LEGEND = 6  # variants that a legend has room for


class Point(NamedTuple):
    """One run: the number of its variant, what was measured, its AUROC; percent."""

    variant: int
    measure: float
    auroc: float


def across(variants: Sequence[Variant]) -> list[Block]:
    """A panel for each measure and group of which two or more runs have the numbers."""
    names = [variant.name for variant in variants]
    panels, absent = [], []
    for key, axis in MEASURES.items():
        for group in ("near", "far"):
            points = _points(variants, key, group)
            if len(points) < 2:
                absent.append(f"{group} AUROC against {axis.removesuffix(', %')}")
            else:
                panels.append(_panel(points, names, key, axis, group))
    out: list[Block] = []
    if panels:
        caption = (
            "Each mark is a run; its AUROC is that of its first scorer, the mean over the group's"
            " sets. ρ: Spearman's rank correlation over n runs."
        )
        out += [Panels("", caption, tuple(panels)), *different_sets(variants)]
    if absent:
        listed = "; ".join(absent)
        out.append(LeftOut(f"Two runs or more with both numbers are needed for: {listed}."))
    return out


def _points(variants: Sequence[Variant], key: str, group: str) -> list[Point]:
    found = [
        (number, run.results["in_distribution"].get(key), _auroc(run, group))
        for number, variant in enumerate(variants)
        for run in variant.runs
    ]
    return [
        Point(number, 100 * measure, 100 * auroc)
        for number, measure, auroc in found
        if isinstance(measure, int | float) and isinstance(auroc, int | float)
    ]


def _auroc(run: Run, group: str) -> Any:
    return (run.results.get(group) or {}).get(run.primary, {}).get("auroc")


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation of x [N] and y [N], ties averaged; None where one is constant."""
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    deviations = [r - r.mean() for r in ranks]
    scale = np.sqrt(np.prod([np.sum(d**2) for d in deviations]))
    return float(np.dot(*deviations) / scale) if scale > 0 else None


def _panel(points: list[Point], names: list[str], key: str, axis: str, group: str) -> Panel:
    x, y = (np.array([p[i] for p in points]) for i in (1, 2))
    rho = spearman(x, y)
    shown = "undefined" if rho is None else f"= {rho:.2f}".replace("-", "−")
    title = f"{group}: ρ {shown}, n = {len(points)}"
    present = sorted({p.variant for p in points})

    def draw(panel: "Axes") -> None:
        marks = []
        for variant in present:
            own = [p for p in points if p.variant == variant]
            style: Any = {"color": colour(variant), "marker": plots.MARKERS[variant % 7]}
            marks.append(
                panel.scatter([p.measure for p in own], [p.auroc for p in own], s=34, **style)
            )
        panel.margins(0.12)
        panel.set(xlabel=axis, ylabel="AUROC, %")
        panel.locator_params(nbins=5)
        panel.set_title(title, loc="left")
        labels = [f" {short(names[variant], 30)}" for variant in present[:LEGEND]]
        panel.figure.legend(marks[:LEGEND], labels, loc="outside lower left", borderpad=0)

    file = f"across-{key.split('_')[0]}-{group}"
    height = 190 + 17 * min(len(present), LEGEND)
    return Panel(
        file, f"{group} AUROC against {axis}, {title}", plots.svg(draw, file, (240, height))
    )


def colour(number: int) -> str:
    """Of the variant `number`, in every picture that sets variants side by side."""
    colours = (plots.INSIDE, *plots.COLOURS)
    return colours[number % len(colours)]
