"""Score histograms and ROC curves; matplotlib without pyplot, so no display is needed."""

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from ood_jax import metrics
from ood_jax.atomic import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60
Scores = dict[str, np.ndarray]  # scorer -> [N], higher = more OOD

# After Wong (2011): told apart by colour-blind people, on white and on black. Markers and dashes
# differ as well.
INSIDE, OUTSIDE = "#1A80C4", "#D55E00"
COLOURS = (OUTSIDE, "#009E73", "#CC79A7", "#E69F00", "#85888D")
MARKERS = ("^", "s", "D", "v", "P", "X", "*")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 1.5)))
INK = "#010203"  # stands for the text colour of the page that an SVG lies in
_PANEL: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names come from files
    "font.size": 10.5,  # 14 px where 240 pt are 320 px
    "axes.titlesize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "hatch.color"), INK),
}


def svg(draw: Callable[["Axes"], None], name: str, size: tuple[float, float] = (240, 180)) -> str:
    """What `draw` puts on the axes, as an SVG whose ink is the page's text colour.

    Args:
      name: another one for each picture of a page, so that their inner links stay apart.
      size: points, width and height.

    The same drawing gives the same text.
    """
    from io import StringIO

    import matplotlib
    from matplotlib.figure import Figure

    out = StringIO()
    settings: Any = _PANEL | {"svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has others
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, dpi=200, metadata=nothing)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.S)
    # Groups are numbered alike in every picture, and nothing refers to them.
    text = re.sub(r'<g id="[A-Za-z0-9.]+_[0-9]+"', "<g", text)
    return text.replace(INK, "currentColor")


def write_plots(test: Scores, sets: dict[str, Scores], folder: epath.Path) -> None:
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
            panel.stairs(density(scores, edges), edges, fill=True, alpha=0.55, label=label)
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


def density(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Heights of the histogram of all scores; those outside `edges` are in the outermost bins."""
    return np.histogram(scores.clip(edges[0], edges[-1]), edges, density=True)[0]


def bulk_edges(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Bins that hold the middle 99 % of both kinds: a few huge scores do not flatten the rest."""
    ends = []
    for scores in (inside, outside):
        finite = scores[np.isfinite(scores)]
        ends += list(np.quantile(finite, (0.005, 0.995))) if len(finite) else []
    return _edges(np.asarray(ends, np.float64))


def _edges(scores: np.ndarray) -> np.ndarray:
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    # Bins of width 0 have no density.
    room = 0.5 * max(abs(low), 1.0) if high - low <= 1e-6 * max(abs(low), abs(high)) else 0.0
    return np.linspace(low - room, high + room, BINS + 1)


def _save(figure: "Figure", path: epath.Path) -> None:
    with replaced(path) as fresh:
        figure.savefig(fresh, format="png", dpi=100)
