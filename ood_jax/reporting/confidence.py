"""How sure two classifiers are, in distribution and out of it: Yu & Aizawa 2019, Figs. 4, 5."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import plots
from ood_jax.reporting import figures
from ood_jax.reporting.blocks import Block, LeftOut, Panel, Panels, Text, clean, short
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import TEST, Run, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY = "confidences"  # in examples.npz, behind the set's name
BARS = 30
MEANING = (
    "Largest softmax probability of each of two classifiers of the same classes, and the L1"
    " distance of their probabilities, sum |p1 − p2|, 0 to 2, which is the score l1_discrepancy:"
    " in-distribution test images (filled) against one OOD set (outline), each area is one. In the"
    " paper, after fine-tuning both are sure of in-distribution images; of OOD images the first"
    " comes near 1/K and the second near 1, and an L1 distance of 1 tells the two apart. Shown for"
    " the first run of each row of the tables."
)
SHOWN = (
    ("classifier 1", 1.0),
    ("classifier 2", 1.0),
    ("L1 distance", 2.0),
)  # and its largest value


def wanted(runs: Sequence[Run]) -> bool:
    """Has a run two classifiers of the same classes?"""
    return any(f"{TEST}/{KEY}" in run.examples for run in runs)


def confidence(variants: Sequence[Variant]) -> list[Block]:
    """Of each variant's first run three panels for every OOD set."""
    out: list[Block] = [Text(MEANING)]
    for number, variant in enumerate(variants, 1):
        run = variant.runs[0]
        if panels := _panels(run, number):
            out.append(Panels(clean(run.label), "", panels))
        else:
            text = "its examples.npz has no confidences of two classifiers of the same classes."
            out.append(LeftOut(clean(f"{run.label}: {text}")))
    return out


def _panels(run: Run, number: int) -> tuple[Panel, ...]:
    inside = _held(run, TEST)
    names = [name for group in groups(run).values() for name in group]
    pairs = {name: (inside, _held(run, name)) for name in names}
    return tuple(
        _panel(run, f"confidence-{number}-{index}-{kind}", name, kind, pair)
        for index, (name, pair) in enumerate(pairs.items(), 1)
        if all(one is not None for one in pair)
        for kind in range(len(SHOWN))
    )


def _held(run: Run, name: str) -> np.ndarray | None:
    """float [N, 3], N >= 1; None where there is none, or the file has another shape."""
    found = run.examples.get(f"{name}/{KEY}")
    if found is None or found.ndim != 2 or found.shape[1] != len(SHOWN) or not len(found):
        return None
    return found if found.dtype.kind == "f" and np.isfinite(found).all() else None


def _panel(run: Run, file: str, name: str, kind: int, pair: tuple[Any, Any]) -> Panel:
    title, largest = SHOWN[kind]
    edges = np.linspace(0, largest, BARS + 1)

    def draw(panel: "Axes") -> None:
        inside, outside = (one[:, kind].clip(0, largest) for one in pair)
        figures.histogram(panel, inside, outside, edges=edges)
        panel.set_title(f"{short(name)}: {title}", loc="left")

    alt = f"{run.label}, {name}: histograms of {title}, in distribution and OOD"
    return Panel(file, clean(alt), plots.svg(draw, file))
