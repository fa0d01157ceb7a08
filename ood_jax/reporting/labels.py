"""Names beside points of a panel, none of them on another or outside the axes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOM = 2.0  # points around a name
REACH = (6.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)  # points between a name and what it names
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
POINT, LINE = 25.0, 60.0  # points of reach that a point below a name costs, and crossing lines


class _Placed(NamedTuple):
    """A name, in points of the figure. box: [[left, bottom], [right, top]]. line: its ends."""

    box: np.ndarray
    line: np.ndarray


def place(
    panel: "Axes", names: Sequence[str], anchors: Sequence[np.ndarray], crowd: np.ndarray
) -> int:
    """Writes each name beside one of its anchors, with a line to it; returns how many had room.

    The first ones choose first; one that has no room without touching another is not written. All
    else must be drawn before: the axes' limits and the legend decide the room.

    Args:
      anchors: of each name, float64 [A, 2]. crowd: float64 [N, 2], what names had better not hide.
        In data coordinates.
    """
    figure: Any = panel.figure
    figure.draw_without_rendering()  # now the axes have their place
    scale = 72 / figure.dpi
    extent = panel.get_window_extent()
    inner = np.array([[extent.x0, extent.y0], [extent.x1, extent.y1]]) * scale
    others = panel.transData.transform(crowd) * scale
    placed: list[_Placed] = []
    for name, own in zip(names, anchors, strict=True):
        text = panel.annotate(name, tuple(own[0]), (0, 0), textcoords="offset points")
        extent = text.get_window_extent()
        text.remove()
        size = np.array([extent.width, extent.height]) * scale + 2 * ROOM
        ends = panel.transData.transform(own) * scale
        found = list(_candidates(ends, size, inner, others, placed))
        if found:
            _, number, best = min(found, key=lambda one: one[0])
            placed.append(best)
            _write(panel, name, own[number], best.box.mean(0) - ends[number])
    return len(placed)


def _write(panel: "Axes", name: str, anchor: np.ndarray, offset: np.ndarray) -> None:
    panel.annotate(
        name,
        tuple(anchor),
        tuple(offset),
        textcoords="offset points",
        ha="center",
        va="center",
        in_layout=False,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2, "alpha": 0.7},
    )


def _candidates(
    ends: np.ndarray,
    size: np.ndarray,
    inner: np.ndarray,
    crowd: np.ndarray,
    placed: Sequence[_Placed],
) -> Iterator[tuple[float, int, _Placed]]:
    """(cost, number of the anchor, where) of all that lie within the axes and on no other name."""
    for number, end in enumerate(ends):
        for reach in REACH:
            for angle in ANGLES:
                centre = end + np.array([np.cos(angle), np.sin(angle)]) * (size / 2 + reach)
                box = np.stack([centre - size / 2, centre + size / 2])
                if (box[0] < inner[0]).any() or (box[1] > inner[1]).any():
                    continue
                if any(_touch(box, other.box) for other in placed):
                    continue
                line = np.stack([end, centre])
                hidden = ((crowd > box[0]) & (crowd < box[1])).all(1).sum()
                crossed = sum(
                    _cross(line, other.line)
                    or _through(line, other.box)
                    or _through(other.line, box)
                    for other in placed
                )
                yield reach + POINT * hidden + LINE * crossed, number, _Placed(box, line)


def _touch(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one[0] < other[1]).all() and (other[0] < one[1]).all())


def _cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Do the lines between two points each meet?"""

    def side(line: np.ndarray, point: np.ndarray) -> float:
        (x, y), (dx, dy) = point - line[0], line[1] - line[0]
        return float(np.sign(dx * y - dy * x))

    return side(one, other[0]) != side(one, other[1]) and side(other, one[0]) != side(other, one[1])


def _through(line: np.ndarray, box: np.ndarray) -> bool:
    """Does the line touch the box's diagonals?"""
    rising = box
    falling = np.array([[box[0, 0], box[1, 1]], [box[1, 0], box[0, 1]]])
    return _cross(line, rising) or _cross(line, falling)
