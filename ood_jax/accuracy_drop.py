"""In-distribution accuracy beside OOD numbers: what detects better is no gain where it drops."""

from collections.abc import Collection, Mapping
from typing import Any

SIGN = "↓"
COLUMN = "ID accuracy, %"
BEFORE = f"{SIGN}: lower than before the last stage"


def dropped(accuracy: float, reference: float | None) -> bool:
    """Is it lower, both fractions, as they are printed, with two digits of a percent?"""
    return reference is not None and round(100 * accuracy, 2) < round(100 * reference, 2)


def marked(text: str, drop: bool) -> str:
    """`text` of an accuracy, with the sign where it dropped."""
    return f"{text} {SIGN}" if drop else text


def reference(stats: Mapping[str, Any]) -> str | None:
    """The first name that has an accuracy.

    stats: name -> what `gather.statistic` returns, None = no accuracy.
    """
    return next((name for name, stat in stats.items() if stat is not None), None)


def lower(stats: Mapping[str, Any], than: str | None) -> set[str]:
    """The names whose mean accuracy is lower than that of `than`; none where that is not known."""
    first = None if than is None else stats.get(than)
    if first is None:
        return set()
    known = {name: stat["mean"] for name, stat in stats.items() if stat is not None}
    return {name for name, mean in known.items() if dropped(mean, first["mean"])}


def notes(drops: Collection[str], than: str | None) -> list[str]:
    """What the sign means where it stands."""
    return [f"{SIGN}: lower ID accuracy than {than}."] if drops else []
