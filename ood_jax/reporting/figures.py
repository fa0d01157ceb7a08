"""Score histograms and ROC curves of every run's first scorer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import metrics, plots, transductive
from ood_jax.reporting.blocks import Block, LeftOut, Panel, Panels, clean, short
from ood_jax.reporting.workdirs import TEST, Run, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOM = 1.3  # of the tallest bar: the legend stands above it
GROUPS = {"near": "near OOD", "far": "far OOD", "other": "other OOD"}


def histograms(runs: Sequence[Run]) -> list[Block]:
    """Per run a panel for each OOD set: in-distribution test scores against the set's."""
    return [
        _block(run, number, _histogram_panels(run, number)) for number, run in enumerate(runs, 1)
    ]


def roc_curves(runs: Sequence[Run]) -> list[Block]:
    """Per run a panel for each group of OOD sets."""
    return [_block(run, number, _roc_panels(run, number)) for number, run in enumerate(runs, 1)]


def _block(run: Run, number: int, panels: list[Panel]) -> Block:
    if "scores" in run.missing:
        return LeftOut(clean(f"{run.label}: {run.missing['scores']}."))
    if not panels:
        return LeftOut(
            clean(f"{run.label}: scores.parquet has no test or no OOD scores of {run.primary}.")
        )
    return Panels(clean(run.label), clean(f"Score: {run.primary}."), tuple(panels))


def _pairs(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """OOD set -> (in-distribution test scores, its scores), both at least one."""
    inside = run.scores.get(TEST)
    if inside is None:
        return {}
    return {name: (inside.scores, run.scores[name].scores) for name in run.scores if name != TEST}


def _histogram_panels(run: Run, number: int) -> list[Panel]:
    pairs = _pairs(run)
    threshold = run.results.get("scorers", {}).get(run.primary, {}).get("threshold")
    ordered = [(g, name) for g, names in groups(run).items() for name in names if name in pairs]
    out, seen = [], transductive.counts_of(run.results)
    for index, (group, name) in enumerate(ordered, 1):
        inside, outside = pairs[name]
        area = metrics.auroc(inside, outside)
        shown = transductive.marked(short(name), seen, name)
        title = f"{shown}{'' if group == 'other' else f' ({group})'}, AUROC {100 * area:.1f}"

        def draw(panel: "Axes", inside: Any = inside, outside: Any = outside, title: str = title):
            histogram(panel, inside, outside, threshold)
            panel.set_title(title, loc="left")

        file = f"scores-{number}-{index}"
        alt = f"{run.label}, {name}: histograms of in-distribution and OOD scores"
        out.append(Panel(file, clean(alt), plots.svg(draw, file)))
    return out


def histogram(
    panel: "Axes",
    inside: np.ndarray,
    outside: np.ndarray,
    threshold: Any = None,
    edges: np.ndarray | None = None,
) -> None:
    """In-distribution scores [N], filled, against those of an OOD set [M]; each area is one.

    edges: of the bars; None = over the bulk of both.
    """
    edges = plots.bulk_edges(inside, outside) if edges is None else edges
    heights = [plots.density(scores, edges) for scores in (inside, outside)]
    panel.stairs(
        heights[0], edges, fill=True, color=plots.INSIDE, alpha=0.45, linewidth=0, label="ID test"
    )
    panel.stairs(heights[1], edges, color=plots.OUTSIDE, linewidth=1.5, label="OOD")
    if isinstance(threshold, int | float) and edges[0] <= threshold <= edges[-1]:
        panel.axvline(
            threshold, ymax=1 / ROOM, color=plots.INK, linewidth=0.9, linestyle=(0, (3, 2))
        )
    panel.set_ylim(0, ROOM * max(map(np.max, heights)))
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.locator_params(axis="x", nbins=5)
    panel.legend(loc="upper center", ncols=2, borderpad=0)


def _roc_panels(run: Run, number: int) -> list[Panel]:
    pairs = _pairs(run)
    out = []
    for group, names in groups(run).items():
        chosen = {name: pairs[name] for name in names if name in pairs}
        if not chosen:
            continue

        def draw(panel: "Axes", group: str = group, chosen: Any = chosen) -> None:
            _roc(panel, chosen)
            panel.set_title(GROUPS[group], loc="left")

        file = f"roc-{number}-{group}"
        alt = f"{run.label}: ROC curves of {GROUPS[group]} sets {', '.join(chosen)}"
        out.append(Panel(file, clean(alt), plots.svg(draw, file, (240, 250))))
    return out


def _roc(panel: "Axes", pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=(0, (2, 2)))
    lines, labels = [], []
    for index, (name, (inside, outside)) in enumerate(pairs.items()):
        false, true, _ = metrics.roc_curve(inside, outside)
        lines += panel.plot(false, true, **line_style(index))
        labels.append(f" {short(name, 14)} {100 * metrics.auroc(inside, outside):.1f}")
    panel.set(xlim=(0, 1), ylim=(0, 1.01), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    panel.set_xlabel("ID test images called OOD")
    panel.set_ylabel("OOD images called OOD")
    panel.legend(lines, labels, loc="lower right", labelspacing=0.25, borderpad=0)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th curve; 25 differ."""
    dashes = index + index // len(plots.COLOURS)
    return {
        "color": plots.COLOURS[index % len(plots.COLOURS)],
        "linestyle": plots.DASHES[dashes % len(plots.DASHES)],
    }
