"""The pictures of a confusion measurement: which sets are taken for which, and which classes."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from ood_jax import plots
from ood_jax.atomic import replaced
from ood_jax.reporting.blocks import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETS = (plots.INSIDE, *plots.COLOURS)  # colours of the sets, in the union's order
LEAF = 11.0  # points from one leaf to the next
NAME = 30  # longest name of a leaf, characters


def write(found: dict[str, Any], arrays: dict[str, np.ndarray], folder: epath.Path) -> None:
    """FOLDER/clp_confusion and FOLDER/clp_dendrogram, each as .svg and .png.

    found: what clp.json holds. arrays: what clp.npz holds.
    """
    names = [one["name"] for one in found["sets"]]
    matrix = np.array(found["confusion"])
    side = 56 * len(names)
    _save(
        lambda panel: draw_confusion(panel, matrix, names),
        folder / "clp_confusion",
        (side + 100, 0.7 * side + 70),
    )
    leaves = len(arrays["classes"])
    _save(
        lambda panel: draw_dendrogram(panel, arrays, names),
        folder / "clp_dendrogram",
        (430, LEAF * leaves + 80),
    )


def draw_confusion(panel: "Axes", matrix: np.ndarray, names: list[str]) -> None:
    """The confusion matrix of data sets [S, S]: rows are true, columns predicted (Fig. 7)."""
    panel.pcolormesh(matrix, cmap="Blues", vmin=0, vmax=1, edgecolors=plots.INK, linewidth=0.5)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            panel.text(
                column + 0.5,
                row + 0.5,
                _number(value),
                ha="center",
                va="center",
                color="#ffffff" if value > 0.5 else "#000000",
            )
    ticks = np.arange(len(names)) + 0.5
    labels = [short(name) for name in names]
    panel.set_xticks(ticks, labels, rotation=30, ha="right", rotation_mode="anchor")
    panel.set_yticks(ticks, labels)
    panel.tick_params(length=0)
    panel.invert_yaxis()
    panel.set_xlabel("predicted set, mean probability")
    panel.set_ylabel("true set")


def _number(share: float) -> str:
    """0.9997 as it is, 0.00002 as 2e-05: two digits of what is left to 0 or 1."""
    return f"{share:.4f}".rstrip("0").rstrip(".") if share >= 0.01 else f"{share:.1e}"


def draw_dendrogram(panel: "Axes", arrays: dict[str, np.ndarray], sets: list[str]) -> None:
    """The tree of `arrays["linkage"]`, a leaf a class, coloured by its set (Fig. 8).

    A branch has the colour of a set where all its leaves are of that set.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    lines, owners, leaves = tree(arrays["linkage"], [sets.index(name) for name in arrays["sets"]])
    colours = [plots.INK if owner < 0 else _colour(owner) for owner in owners]
    panel.add_collection(LineCollection(list(lines), colors=colours, linewidths=1.0))
    height = np.empty(len(leaves))
    height[leaves] = np.arange(len(leaves))
    of_leaf = np.array([sets.index(name) for name in arrays["sets"]])
    for number, name in enumerate(sets):
        own = height[of_leaf == number]
        marker = plots.MARKERS[number % len(plots.MARKERS)]
        panel.plot(
            np.zeros(len(own)),
            own,
            linestyle="none",
            marker=marker,
            markersize=4,
            color=_colour(number),
            label=short(name),
            clip_on=False,
        )
    panel.set_xlim(1.03 * max(float(np.max(lines[:, :, 0])), 1e-9), 0)
    panel.set_ylim(len(leaves) - 0.4, -0.6)
    panel.yaxis.tick_right()
    panel.set_yticks(np.arange(len(leaves)), [short(arrays["classes"][i], NAME) for i in leaves])
    panel.tick_params(axis="y", length=0, pad=6, labelsize=0.8 * LEAF)
    for text, leaf in zip(panel.get_yticklabels(), leaves, strict=True):
        text.set_color(_colour(of_leaf[leaf]))
    panel.spines[["left", "right", "top"]].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_xlabel("distance of classes, Eq. 6")
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _colour(number: int) -> str:
    return SETS[number % len(SETS)]


def tree(linkage: np.ndarray, sets: list[int]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """How a linkage is drawn: (lines [C - 1, 4, 2] of (distance, place), owners, leaves [C]).

    leaves: the classes from place 0 on. owners: of each line the one set of all its leaves; -1 =
    they are of several. sets: the set of each class.
    """
    from scipy.cluster.hierarchy import leaves_list

    leaves = leaves_list(linkage)
    place = np.empty(len(leaves))
    place[leaves] = np.arange(len(leaves))
    nodes = [(0.0, float(place[i]), owner) for i, owner in enumerate(sets)]
    lines, owners = [], []
    for first, second, distance, _ in linkage:
        (d1, p1, o1), (d2, p2, o2) = nodes[int(first)], nodes[int(second)]
        lines.append([(d1, p1), (distance, p1), (distance, p2), (d2, p2)])
        owners.append(o1 if o1 == o2 else -1)
        nodes.append((float(distance), (p1 + p2) / 2, owners[-1]))
    return np.array(lines), owners, leaves


def _save(draw: Callable[["Axes"], None], path: epath.Path, size: tuple[float, float]) -> None:
    """PATH.svg, whose ink is the page's, and PATH.png; size: points, width and height."""
    import matplotlib
    from matplotlib.figure import Figure

    with replaced(path.with_name(f"{path.name}.svg")) as fresh:
        fresh.write_text(plots.svg(draw, path.name, size), encoding="utf-8")
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure.subplots())
        with replaced(path.with_name(f"{path.name}.png")) as fresh:
            figure.savefig(fresh, format="png", dpi=120)
