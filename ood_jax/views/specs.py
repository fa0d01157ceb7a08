"""What a random view is, as numbers: hashable, so that a jitted step can be told apart by it."""

from collections.abc import Sequence
from typing import NamedTuple

ORDERS = ("view", "example")


class View(NamedTuple):
    """One random view, in this order: crop, shift, flip, jitter, grey, blur, solarize.

    size: px. scale: share of the image's area, (min, max). ratio: width / height of the box.
    pad: px; above 0 the box is instead as large as the image and lies anywhere in it with so many
    px of black on each side, CIFAR's usual crop.
    flip, *_probability: in [0, 1]. jitter: strengths of brightness, contrast, saturation (factors
    1 ± strength, at least 0) and hue (turns, ± strength <= 0.5). blur_radius: sigma in px of the
    view, (min, max). jitter_order: "view" draws one order of the four a view and step, "example"
    one for each image (the papers' way; slower).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0
    jitter_order: str = "view"
    pad: int = 0


def check_views(views: Sequence[View]) -> None:
    """Refuses views that make no sense.

    Raises:
      ValueError: no views, size < 1, scale or ratio not ascending or out of range, a probability
        outside [0, 1], negative jitter or hue above 0.5, a negative blur radius or pad, an unknown
        order.
    """
    if not views:
        raise ValueError("no views: give at least one")
    for view in views:
        for name in ("scale", "ratio", "blur_radius"):
            if len(getattr(view, name)) != 2:
                raise ValueError(f"view {name} = {getattr(view, name)!r}: must be (min, max)")
        for name, valid, rule in _rules(view):
            if not valid:
                raise ValueError(f"view {name} = {getattr(view, name)!r}: must be {rule}")


def _rules(view: View) -> list[tuple[str, bool, str]]:
    probabilities = (
        "flip",
        "jitter_probability",
        "grey_probability",
        "blur_probability",
        "solarize_probability",
    )
    low, high = view.blur_radius
    jitter = view.jitter
    return [
        ("size", view.size >= 1, "at least 1 px"),
        ("pad", view.pad >= 0, "0 px (none) or more"),
        ("scale", 0 < view.scale[0] <= view.scale[1] <= 1, "(min, max) with 0 < min <= max <= 1"),
        ("ratio", 0 < view.ratio[0] <= view.ratio[1], "(min, max) with 0 < min <= max"),
        *((p, 0 <= getattr(view, p) <= 1, "a probability from 0 to 1") for p in probabilities),
        (
            "jitter",
            len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5,
            "4 strengths >= 0, the last (hue) at most 0.5",
        ),
        ("blur_radius", 0 <= low <= high, "(min, max) with 0 <= min <= max"),
        ("jitter_order", view.jitter_order in ORDERS, " or ".join(ORDERS)),
    ]
