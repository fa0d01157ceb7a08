"""The pictures of AUROC against CLP: Winkens et al. (2020), Figs. 1, 4c and 6."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import plots
from ood_jax.reporting.across import LEGEND, colour
from ood_jax.reporting.blocks import Panel, clean, short
from ood_jax.reporting.clp_bins import Bin, binned, edges
from ood_jax.reporting.clp_points import Judged, Point
from ood_jax.reporting.labels import place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"near": "o", "far": "^", "other": "s"}
EXTREMES = 2  # classes named at either end of CLP, and of the largest gain
ALONG = 20  # points of a line that names keep off
SIZE = (240, 230)  # points, without the legend
ROW = 17  # points of a line of the legend
Key = tuple[str, int]  # (outside set, label)


def class_panel(judged: Sequence[Judged], file: str) -> Panel:
    """Points of OOD classes, variants over one another; a few classes are named."""
    groups = [g for g in MARKS if any(p.group == g for one in judged for p in one.points.values())]

    def draw(panel: "Axes") -> None:
        for one in judged:
            for group in groups:
                own = [p for p in one.points.values() if p.group == group]
                style: Any = _style(one, group)
                panel.scatter([p.clp for p in own], [p.auroc for p in own], s=13, **style)
        panel.margins(0.05)
        _dress(panel, "class-wise CLP", "OOD classes")
        _legend(panel, judged, groups)
        _name_extremes(panel, judged)

    named = ", ".join(dict.fromkeys(name for one in judged for name in one.sets))
    alt = f"AUROC of each class of {named} against its class-wise CLP for {judged[0].inside}"
    return Panel(file, clean(alt), plots.svg(draw, file, _size(judged, groups)))


def _style(one: Judged, group: str) -> dict[str, Any]:
    return {
        "marker": MARKS[group],
        "color": colour(one.number),
        "alpha": 0.75,
        "linewidths": 0,
    }


def _dress(panel: "Axes", axis: str, title: str) -> None:
    low, _ = panel.get_ylim()
    panel.set_ylim(top=min(panel.get_ylim()[1], 101.5))
    if low < 50:
        panel.axhline(50, color="grey", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    panel.set(xlabel=f"{axis} (log; right = nearer)", ylabel="AUROC, %")
    panel.locator_params(nbins=6)
    panel.set_title(title, loc="left")


def _size(judged: Sequence[Judged], groups: Sequence[str]) -> tuple[float, float]:
    return SIZE[0], SIZE[1] + ROW * (min(len(judged), LEGEND) + len(groups))


def _legend(panel: "Axes", judged: Sequence[Judged], groups: Sequence[str]) -> None:
    """Colours are variants, markers are groups."""
    from matplotlib.lines import Line2D

    grey: Any = {"color": "grey", "linestyle": ""}
    shown = judged[:LEGEND]
    marks = [Line2D([], [], color=colour(one.number), linewidth=5) for one in shown]
    marks += [Line2D([], [], marker=MARKS[group], **grey) for group in groups]
    names = [f" {short(one.variant.name, 30)}" for one in shown]
    names += [f" {group} OOD" for group in groups]
    figure: Any = panel.figure
    figure.legend(marks, names, loc="outside lower left", borderpad=0)


def extremes(judged: Sequence[Judged]) -> list[Key]:
    """Classes of highest and lowest CLP, and of largest gain of the second variant over the first.

    Those that come first are the most extreme; no class twice.
    """
    found: dict[Key, Point] = {}
    for one in judged:
        found = one.points | found
    by_clp = sorted(found, key=lambda key: (found[key].clp, key))
    gains: list[Key] = []
    if len(judged) > 1:
        first, second = (one.points for one in judged[:2])
        both = [key for key in by_clp if key in first and key in second]
        gains = sorted(both, key=lambda key: abs(second[key].auroc - first[key].auroc))[::-1]
    ends = [by_clp[::-1][:EXTREMES], by_clp[:EXTREMES], gains[:EXTREMES]]
    turns = [part[i] for i in range(EXTREMES) for part in ends if i < len(part)]
    return list(dict.fromkeys(turns))


def _name_extremes(panel: "Axes", judged: Sequence[Judged]) -> None:
    """A named class has a line through its points, and its name beside one of them."""
    names, ends = [], []
    for key in extremes(judged):
        own = [one.points[key] for one in judged if key in one.points]
        at = np.array([(point.clp, point.auroc) for point in own])
        names.append(short(own[0].name, 16))
        ends.append(at)
        panel.plot(*at.T, color="grey", linewidth=0.8, zorder=0)
    crowd = [np.array([(p.clp, p.auroc) for p in one.points.values()]) for one in judged]
    lines = [np.linspace(end.min(0), end.max(0), ALONG) for end in ends]
    place(panel, names, ends, np.concatenate([*crowd, *lines]))


def bin_panel(judged: Sequence[Judged], file: str) -> Panel | None:
    """AUROC of images of like CLP; None = fewer than two bins have enough images."""
    judged = [one for one in judged if one.samples]
    if not judged:
        return None
    bounds = edges([sample.clp for one in judged for sample in one.samples])
    found = [binned(one.samples, bounds) for one in judged]
    if max(map(len, found)) < 2:
        return None
    kinds = {one.near for bins in found for one in bins.values()}
    groups = [group for group, near in (("near", True), ("far", False)) if near in kinds]

    def draw(panel: "Axes") -> None:
        for edge in bounds:
            panel.axvline(edge, color="grey", alpha=0.25, linewidth=0.6, zorder=0)
        for place_in_bin, (one, bins) in enumerate(zip(judged, found, strict=True), 1):
            share = place_in_bin / (len(judged) + 1)
            _draw_bins(panel, one, bins, bounds[:-1] + share * np.diff(bounds))
        _dress(panel, "image-wise CLP", "OOD images, binned")
        _legend(panel, judged, groups)

    alt = f"AUROC of OOD images against their CLP for {judged[0].inside}, in bins of it"
    return Panel(file, clean(alt), plots.svg(draw, file, _size(judged, groups)))


def _draw_bins(panel: "Axes", one: Judged, bins: dict[int, Bin], x: np.ndarray) -> None:
    places, values = list(bins), list(bins.values())
    if not places:
        return
    line: Any = {"color": colour(one.number), "linewidth": 1.2}
    panel.plot(x[places], [b.auroc for b in values], **line)
    panel.vlines(x[places], [b.low for b in values], [b.high for b in values], **line)
    for near, marker in ((True, MARKS["near"]), (False, MARKS["far"])):
        own = [i for i, b in bins.items() if b.near == near]
        style: Any = {"color": colour(one.number), "marker": marker, "linewidths": 0}
        panel.scatter(x[own], [bins[i].auroc for i in own], s=26, zorder=3, **style)
