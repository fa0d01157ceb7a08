"""Score histograms and ROC curves as PNG; matplotlib without pyplot, so no display is needed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ood_jax import metrics
from ood_jax.atomic import replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60
Scores = dict[str, np.ndarray]  # scorer -> [N], higher = more OOD


def write_plots(test: Scores, sets: dict[str, Scores], folder: Path) -> None:
    """FOLDER/<set>_scores.png and FOLDER/<set>_roc.png of every OOD set.

    test: of the in-distribution test set, with the same scorers as `sets`.
    """
    for name, scores in sets.items():
        _save(histograms(test, scores, name), folder / f"{name}_scores.png")
        _save(roc_curves(test, scores, name), folder / f"{name}_roc.png")


def histograms(inside: Scores, outside: Scores, name: str) -> "Figure":
    """One panel a scorer: the scores of test images and those of the OOD set `name`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6 * len(outside)), layout="constrained")
    panels = figure.subplots(len(outside), 1, squeeze=False)[:, 0]
    for panel, scorer in zip(panels, outside, strict=True):
        pair = [np.asarray(s[scorer], np.float64) for s in (inside, outside)]
        edges = _edges(np.concatenate(pair))
        for scores, label in zip(pair, ("in-distribution test", name), strict=True):
            heights, _ = np.histogram(scores.clip(edges[0], edges[-1]), edges, density=True)
            panel.stairs(heights, edges, fill=True, alpha=0.55, label=label)
        panel.set_xlabel(f"{scorer}, higher = more OOD")
        panel.set_ylabel("density")
        panel.legend()
    return figure


def roc_curves(inside: Scores, outside: Scores, name: str) -> "Figure":
    """All scorers' ROC curves against the OOD set `name`, OOD positive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    panel = figure.subplots()
    for scorer in outside:
        false, true, _ = metrics.roc_curve(inside[scorer], outside[scorer])
        area = metrics.auroc(inside[scorer], outside[scorer])
        panel.plot(false, true, label=f"{scorer}, AUROC {100 * area:.1f} %")
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    panel.set_title(name)
    panel.set_xlabel("false positive rate: ID test images called OOD")
    panel.set_ylabel("true positive rate: OOD images called OOD")
    panel.legend(loc="lower right")
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    # Bins of width 0 have no density.
    room = 0.5 * max(abs(low), 1.0) if high - low <= 1e-6 * max(abs(low), abs(high)) else 0.0
    return np.linspace(low - room, high + room, BINS + 1)


def _save(figure: "Figure", path: Path) -> None:
    with replaced(path) as fresh:
        figure.savefig(fresh, format="png", dpi=100)
