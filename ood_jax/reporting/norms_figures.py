"""The pictures of norms over training: Le-Gia & Ahn, Figs. 1, 2 and 6."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ood_jax import plots
from ood_jax.reporting.across import colour
from ood_jax.reporting.blocks import Panel, clean, short
from ood_jax.reporting.figures import line_style
from ood_jax.reporting.norms_read import SCORES, Norms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (240, 170)  # points
ROW = 16  # points of a line of a key
MARKED = 30  # checkpoints that are not too many to be marked each
WIDE = 20.0  # the largest value over the smallest, from which on the axis is logarithmic
TITLES = {  # name in Norms.values -> title of its panel
    "norm": "norm |f(x)|",
    "mu_over_sigma_v": "μ / σ_V",
    "sigma_v": "σ_V",
    **{score: f"AUROC of {score}, %" for score in reversed(SCORES.values())},
}


class Path(NamedTuple):
    """A run over its checkpoints: values of the test set, float64 [S]. number: of its variant.

    auroc: in percent, of s_mu, the mean over the OOD sets; NaN = there is none.
    """

    number: int
    name: str
    alignment: np.ndarray
    uniformity: np.ndarray
    auroc: np.ndarray


def over_steps(norms: Norms, label: str, number: int) -> tuple[Panel, ...]:
    """The key to the sets, and a panel for each of TITLES with a line for each of them."""
    panels = [
        _panel(norms, name, title, f"{label}: {title} over training steps", f"norms-{number}-{i}")
        for i, (name, title) in enumerate(TITLES.items(), 1)
        if any(name in values for values in norms.values.values())
    ]
    lines = [(named(norms, name), _style(norms, name)) for name in norms.roles]
    return (_key(lines, f"norms-{number}-key", f"{label}: key of the sets"), *panels)


def named(norms: Norms, name: str) -> str:
    """The set's name, and whether it is near or far."""
    role = norms.roles[name]
    return f"{name} ({role})" if role in ("near", "far") else name


def _style(norms: Norms, name: str) -> dict[str, Any]:
    role = norms.roles[name]
    if role in ("train", "test"):
        dashes = plots.DASHES[1] if role == "train" else "solid"
        return {"color": plots.INSIDE, "linestyle": dashes}
    if role == "outliers":
        return {"color": plots.INK, "linestyle": plots.DASHES[2]}
    return line_style(norms.outside().index(name))


def _panel(norms: Norms, name: str, title: str, alt: str, file: str) -> Panel:
    percent = name in SCORES.values()

    def draw(panel: "Axes") -> None:
        for one, values in norms.values.items():
            if name in values:
                scale = 100 if percent else 1
                panel.plot(norms.steps, scale * values[name], **_style(norms, one), **_marks(norms))
        if name == "norm":
            inside = norms.values["test"]
            panel.fill_between(
                norms.steps, inside["q05"], inside["q95"], color=plots.INSIDE, alpha=0.18, lw=0
            )
        panel.locator_params(nbins=4)
        if percent:
            panel.axhline(50, color="grey", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
            panel.set_ylim(top=min(panel.get_ylim()[1], 101.5))
        elif _wide(norms, name):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")  # powers of ten would be markup
            panel.yaxis.set_minor_formatter("")
        else:
            panel.set_ylim(bottom=0)
        panel.set_title(f"{title}, logarithmic" if _wide(norms, name) else title, loc="left")

    return Panel(file, clean(alt), plots.svg(draw, file, SIZE))


def _wide(norms: Norms, name: str) -> bool:
    """Do values lie so far apart, as where outliers shrink all norms, that 0 would hide them?"""
    each = np.concatenate([values[name] for values in norms.values.values() if name in values])
    known = each[np.isfinite(each)]
    return bool(len(known) and 0 < known.min() < known.max() / WIDE)


def _marks(norms: Norms) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if len(norms.steps) <= MARKED else {}


def _key(lines: Sequence[tuple[str, dict[str, Any]]], file: str, alt: str) -> Panel:
    def draw(panel: "Axes") -> None:
        marks = [panel.plot([], [], **style)[0] for _, style in lines]
        panel.set_axis_off()
        labels = [f" {short(name, 34)}" for name, _ in lines]
        panel.legend(marks, labels, loc="upper left", borderpad=0, borderaxespad=0)

    height = max(40, 8 + ROW * len(lines))
    return Panel(file, clean(alt), plots.svg(draw, file, (SIZE[0], height)))


def trade_off(paths: Sequence[Path]) -> tuple[Panel, ...]:
    """The key to the runs, then alignment and AUROC over exp(uniformity), each run a path."""
    axes = {"alignment": "alignment E|z − z′|²", "auroc": "mean AUROC of s_μ, %"}
    panels = []
    for name, axis in axes.items():
        own = [path for path in paths if np.isfinite(getattr(path, name)).any()]
        if own:
            panels.append(_paths(own, name, axis))
    shown = {path.number: path for path in reversed(paths)}
    lines = [(shown[i].name, _path_style(i) | {"markersize": 6}) for i in sorted(shown)]
    return (_key(lines, "norms-paths-key", "key of the runs"), *panels)


def _paths(paths: Sequence[Path], name: str, axis: str) -> Panel:
    def draw(panel: "Axes") -> None:
        for path in paths:
            x, y = np.exp(path.uniformity), getattr(path, name)
            style = _path_style(path.number)
            line: Any = {"linewidth": 1, "alpha": 0.6, "marker": ".", "markersize": 3}
            panel.plot(x, y, color=style["color"], **line)
            panel.plot(x[-1:], y[-1:], **style, markersize=7, linestyle="")
        panel.margins(0.08)
        panel.set(xlabel="exp(uniformity); 1 = collapsed", ylabel=axis)
        panel.locator_params(nbins=5)

    file = f"norms-paths-{name}"
    alt = f"{axis} against exp(uniformity) of test images, a path for each run"
    return Panel(file, clean(alt), plots.svg(draw, file, (SIZE[0], 190)))


def _path_style(number: int) -> dict[str, Any]:
    return {"color": colour(number), "marker": plots.MARKERS[number % len(plots.MARKERS)]}
