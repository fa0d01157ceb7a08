"""Training curves from metrics.jsonl, the runs over one another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import plots
from ood_jax.reporting.blocks import Block, LeftOut, Panel, Panels, clean, short
from ood_jax.reporting.workdirs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST = ("loss", "learning_rate", "knn_accuracy")  # of the panels, where a run has them
NOT_SHOWN = ("step", "time", "images_per_second", "skipped")
POINTS = 400  # of a curve; more are averaged
PANELS = 24

Curves = list[tuple[int, np.ndarray, np.ndarray]]  # (number of the run, steps, values)


def curves(runs: Sequence[Run]) -> list[Block]:
    """A panel for each metric, losses first; runs without metrics.jsonl are named."""
    out: list[Block] = [
        LeftOut(clean(f"{run.label}: {run.missing['metrics']}."))
        for run in runs
        if "metrics" in run.missing
    ]
    names = dict.fromkeys(name for run in runs for row in run.metrics for name in row)
    ordered = sorted(names, key=_place)
    drawn = [(name, found) for name in ordered if (found := _curves(runs, name))]
    if not drawn:
        return [*out, LeftOut("No metric was logged twice (train.log_every): there are no curves.")]
    panels = [_panel(name, found, i) for i, (name, found) in enumerate(drawn[:PANELS], 1)]
    if len(runs) > 1:
        panels.insert(0, _key([(i, run) for i, run in enumerate(runs) if run.metrics]))
    caption = f"Over steps. A curve of more than {POINTS} lines is averaged down to them."
    if len(drawn) > PANELS:
        caption += f" Not shown: {', '.join(name for name, _ in drawn[PANELS:])}."
    return [*out, Panels("", clean(caption), tuple(panels))]


def _place(name: str) -> int:
    """Among the panels; a metric of a stage stands beside that of the others."""
    bare = _bare(name)
    return FIRST.index(bare) if bare in FIRST else len(FIRST)


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _curves(runs: Sequence[Run], name: str) -> Curves:
    """The runs that logged `name` at least twice; values that are no numbers break the line."""
    if _bare(name) in NOT_SHOWN:
        return []
    found = []
    for number, run in enumerate(runs):
        rows = [row for row in run.metrics if all(_is_number(row.get(k)) for k in ("step", name))]
        if len(rows) > 1 and any(math.isfinite(row[name]) for row in rows):
            steps, values = (np.array([row[key] for row in rows], float) for key in ("step", name))
            values[~np.isfinite(values)] = np.nan
            found.append((number, *_thinned(steps, values)))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring lines, so that at most POINTS stay; NaN where one is."""
    if len(steps) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), POINTS)
    means = [(steps[part].mean(), values[part].mean()) for part in parts]
    return tuple(np.array(means).T)  # type: ignore[return-value]


def _style(number: int) -> dict[str, Any]:
    colours = (plots.INSIDE, *plots.COLOURS)
    return {
        "color": colours[number % len(colours)],
        "linestyle": plots.DASHES[number // len(colours) % len(plots.DASHES)],
        "linewidth": 1.2,
    }


def _panel(name: str, found: Curves, index: int) -> Panel:
    def draw(panel: "Axes") -> None:
        for number, steps, values in found:
            panel.plot(steps, values, **_style(number))
        panel.set_title(short(name, 32), loc="left")
        panel.locator_params(nbins=4)
        panel.ticklabel_format(scilimits=(-3, 5), useMathText=False)

    file = f"curve-{index}"
    return Panel(file, clean(f"{name} over training steps"), plots.svg(draw, file, (240, 150)))


def _key(runs: Sequence[tuple[int, Run]]) -> Panel:
    """Which line is which run."""

    def draw(panel: "Axes") -> None:
        lines = [panel.plot([], [], **_style(number))[0] for number, _ in runs]
        labels = [f" {short(run.label, 30)}" for _, run in runs]
        panel.set_axis_off()
        panel.legend(lines, labels, loc="upper left", borderpad=0, borderaxespad=0)

    height = max(40, 8 + 16 * len(runs))
    return Panel(
        "curve-key", "key of the training curves", plots.svg(draw, "curve-key", (240, height))
    )
