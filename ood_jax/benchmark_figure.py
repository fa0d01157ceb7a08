"""A benchmark's picture: AUROC by case, or against the number of images."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from ood_jax import plots
from ood_jax.atomic import replaced
from ood_jax.benchmark_table import named
from ood_jax.reporting.across import colour
from ood_jax.reporting.blocks import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = 24  # longest name of a case or line, characters
BESIDE = 0.5  # of the room that a case has, which its points share


def write(table: dict[str, Any], path: epath.PathLike) -> bool:
    """PATH, a .png of what `benchmark_table.tabulate` gave, a panel an OOD set.

    Returns:
      Is there a number to draw? Without one nothing is written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cells = [sets for row in table["rows"] for sets in row["auroc"].values()]
    if not any(one for sets in cells for one in sets.values()):
        return False
    names = list(dict.fromkeys(name for sets in table["sets"].values() for name in sets))
    draw = draw_cases if table["rows"][0]["at"] is None else draw_curves
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        width = 5.5 if draw is draw_curves else min(max(2 + 0.35 * len(table["rows"]), 5.5), 30)
        figure = Figure(figsize=(width * len(names), 4), layout="constrained")
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        marks: dict[str, Any] = {}
        for panel, name in zip(panels, names, strict=True):
            draw(panel, table, name)
            panel.set_title(f"{table['benchmark']}: {name}", loc="left")
            handles, labels = panel.get_legend_handles_labels()
            marks |= dict(zip(labels, handles, strict=True))
        panels[0].set_ylabel("AUROC, %")
        figure.legend(marks.values(), marks, loc="outside lower left", ncols=2, frameon=False)
        with replaced(path) as fresh:
            figure.savefig(fresh, format="png", dpi=120)
    return True


def draw_cases(panel: "Axes", table: dict[str, Any], ood: str) -> None:
    """AUROC of one OOD set, a point a case and recipe, the mean last; ± one deviation."""
    rows = [(row["case"], row["auroc"]) for row in table["rows"]]
    rows += [("mean", table["mean"])] if table["mean"] else []
    variants = list(table["sets"])
    for number, variant in enumerate(variants):
        found = [(i, cells.get(variant, {}).get(ood)) for i, (_, cells) in enumerate(rows)]
        aside = BESIDE * ((number + 0.5) / len(variants) - 0.5)
        points = [(i + aside, one) for i, one in found if one]
        _points(panel, points, number, named(table, variant), "none")
    if table["mean"]:
        panel.axvline(len(rows) - 1.5, color="grey", linewidth=0.8)
    panel.set_xlim(-0.5, len(rows) - 0.5)
    labels = [short(case, NAME) for case, _ in rows]
    panel.set_xticks(range(len(rows)), labels, rotation=30, ha="right", rotation_mode="anchor")


def draw_curves(panel: "Axes", table: dict[str, Any], ood: str) -> None:
    """AUROC of one OOD set against the number of images, a line a recipe and source of outliers.

    As Figs. 3 and 7; ± one deviation.
    """
    numbers = sorted({row["at"] for row in table["rows"]})
    curves = list(dict.fromkeys(row["curve"] for row in table["rows"]))
    lines = [(variant, curve) for variant in table["sets"] for curve in curves]
    lines = [line for line in lines if _on(table, line, ood) is not None]
    for number, (variant, curve) in enumerate(lines):
        points = _on(table, (variant, curve), ood) or []
        label = ", ".join(filter(None, [named(table, variant), curve]))
        _points(panel, points, number, label, plots.DASHES[number % len(plots.DASHES)])
    if numbers[0] == 0:
        panel.set_xscale("symlog", linthresh=1)
    else:
        panel.set_xscale("log")
    panel.set_xticks(numbers, [f"{number:,}" for number in numbers])
    panel.minorticks_off()
    few_shot = table["benchmark"] == "few_shot"
    panel.set_xlabel("k, outliers of the obtainable class" if few_shot else "training images")


def _on(
    table: dict[str, Any], line: tuple[str, str], ood: str
) -> list[tuple[float, dict[str, Any]]] | None:
    """The points of a line, (variant, curve), that there are; None = there are to be none."""
    variant, curve = line
    rows = [row for row in table["rows"] if row["curve"] == curve and variant in row["auroc"]]
    found = [(row["at"], row["auroc"][variant].get(ood)) for row in rows]
    return [(at, one) for at, one in found if one] if rows else None


def _points(
    panel: "Axes", points: list[tuple[float, dict[str, Any]]], number: int, label: str, dashes: Any
) -> None:
    """Means with one deviation, joined by a line unless its `dashes` are "none"."""
    spread = np.array([100 * (one["std"] or 0.0) for _, one in points])
    panel.errorbar(
        [at for at, _ in points],
        [100 * one["mean"] for _, one in points],
        spread,
        color=colour(number),
        marker=plots.MARKERS[number % len(plots.MARKERS)],
        markersize=5,
        capsize=2,
        linestyle=dashes,
        label=short(label, 2 * NAME),
    )
