"""Features in two dimensions: principal axes of the train features, or t-SNE of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import plots
from ood_jax.reporting.blocks import Block, LeftOut, Panel, Panels, clean, short
from ood_jax.reporting.figures import GROUPS
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import TEST, Run, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("pca", "tsne")
Points = dict[str, np.ndarray]  # set -> [N, 2]


def projections(variants: Sequence[Variant], method: str) -> list[Block]:
    """Of each variant's first run, a panel for each group of OOD sets over the test images."""
    out: list[Block] = []
    for number, run in enumerate([variant.runs[0] for variant in variants], 1):
        points = _points(run)
        if "examples" in run.missing:
            out.append(LeftOut(clean(f"{run.label}: {run.missing['examples']}.")))
        elif TEST not in points or len(points) < 2:
            out.append(LeftOut(clean(f"{run.label}: examples.npz has no features to project.")))
        else:
            flat = _tsne(points) if method == "tsne" else _two(points)
            out.append(Panels(clean(run.label), "", tuple(_panels(run, number, flat, method))))
    return out


def _points(run: Run) -> Points:
    """The test set's and the OOD sets' features, [N, D] each, whole and finite."""
    found = {name: run.examples.get(f"{name}/points") for name in (TEST, *run.results["sets"])}
    return {
        name: np.asarray(points, np.float64)
        for name, points in found.items()
        if points is not None and points.ndim == 2 and points.size and np.isfinite(points).all()
    }


def _two(points: Points) -> Points:
    """The first two axes; a line where there is but one."""
    return {name: np.pad(p, ((0, 0), (0, 1)))[:, :2] for name, p in points.items()}


def _tsne(points: Points) -> Points:
    """t-SNE of all points together (van der Maaten and Hinton 2008); the same every time."""
    from sklearn.manifold import TSNE

    rows = np.concatenate(list(points.values()))
    if len(rows) < 5 or rows.shape[1] < 2:
        return _two(points)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    ends = np.cumsum([len(p) for p in points.values()])[:-1]
    return dict(zip(points, np.split(flat.astype(np.float64), ends), strict=True))


def _panels(run: Run, number: int, points: Points, method: str) -> list[Panel]:
    everything = np.concatenate(list(points.values()))
    out = []
    for group, names in groups(run).items():
        chosen = {name: points[name] for name in names if name in points}
        if not chosen:
            continue

        def draw(panel: "Axes", group: str = group, chosen: Points = chosen) -> None:
            scatter(panel, points[TEST], chosen, "ID test")
            frame(panel, everything)
            names = ("axis 1", "axis 2") if method == "pca" else ("", "")
            panel.set(xticks=[], yticks=[], xlabel=names[0], ylabel=names[1])
            panel.set_title(f"ID test and {GROUPS[group]}", loc="left")

        file = f"features-{number}-{group}"
        alt = f"{run.label}: features of test images and of {', '.join(chosen)}"
        height = 250 + 17 * ((len(chosen) + 2) // 2)
        out.append(Panel(file, clean(alt), plots.svg(draw, file, (240, height))))
    return out


def frame(panel: "Axes", points: np.ndarray) -> None:
    """Limits around `points` [N, 2], with a little room."""
    low, high = points.min(0), points.max(0)
    room = 0.04 * np.maximum(high - low, 1e-9)
    panel.set_xlim(low[0] - room[0], high[0] + room[0])
    panel.set_ylim(low[1] - room[1], high[1] + room[1])


def scatter(panel: "Axes", inside: np.ndarray, sets: Points, label: str) -> None:
    """`inside` [N, 2], filled and called `label`, under each of `sets`, hollow."""
    x, y = inside.T
    marks = [panel.scatter(x, y, s=9, color=plots.INSIDE, alpha=0.75, linewidths=0)]
    for index, points in enumerate(sets.values()):
        marker = plots.MARKERS[index % len(plots.MARKERS)]
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        style: Any = {"facecolors": "none", "edgecolors": colour, "linewidths": 0.8}
        x, y = points.T
        marks.append(panel.scatter(x, y, s=16, marker=marker, alpha=0.85, **style))
    for mark in marks:
        mark.set_rasterized(True)  # hundreds of marks: a picture is smaller than their outlines
    labels = [f" {label}", *(f" {short(name, 14)}" for name in sets)]
    legend = panel.figure.legend(marks, labels, loc="outside lower left", ncols=2, borderpad=0)
    handles: Any = legend.legend_handles
    for handle in handles:
        handle.set_sizes([36])
        handle.set_alpha(1)
