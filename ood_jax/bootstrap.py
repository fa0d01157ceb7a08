"""How far an AUROC of one run could be off by the choice of images: the bootstrap.

Efron & Tibshirani 1993, percentile intervals; images are drawn with replacement, in-distribution
and OOD ones by themselves. Says nothing of other seeds: for these, train several.
"""

from collections.abc import Mapping

import numpy as np

from ood_jax.metrics import checked
from ood_jax.types import Array


def bootstrap_auroc(
    in_scores: Array, out_scores: Mapping[str, Array], resamples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """AUROC of every OOD set on resampled images; a tie counts half, exactly.

    The in-distribution images of resample r are the same for all sets, so that the mean over sets
    of resample r is a resample of a group's mean. What is drawn of a set depends on its name and
    the seed, not on the sets beside it.

    Args:
      in_scores: [N], out_scores: {set: [M]}; higher = more OOD.
      resamples: R, 1 or more. seed: 0 or more.

    Returns:
      {set: float64 [R]}, fractions.

    Raises:
      ValueError: fewer than one resample, no scores, or a score that is NaN.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples: use 1 or more, such as 1000")
    inside = np.sort(checked(in_scores, "in-distribution"))
    places, draws = {}, {}
    for name, scores in out_scores.items():
        outside = np.sort(checked(scores, f"{name} OOD"))
        places[name] = [np.searchsorted(inside, outside, side) for side in ("left", "right")]
        draws[name] = np.random.default_rng([seed, *name.encode()])
    drawn_inside = np.random.default_rng(seed)
    found = {name: np.empty(resamples) for name in places}
    below = np.zeros(len(inside) + 1, np.int64)
    for r in range(resamples):
        counts = np.bincount(_drawn(drawn_inside, len(inside)), minlength=len(inside))
        np.cumsum(counts, out=below[1:])  # drawn images at the first i ranks
        for name, (left, right) in places.items():
            twice = below[left] + below[right]  # below each OOD score, ties half: whole numbers
            total = twice[_drawn(draws[name], len(left))].sum()
            found[name][r] = total / (2 * len(inside) * len(left))
    return found


def _drawn(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(count, size=count)


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval that holds the middle `level` of resampled values [R].

    Raises:
      ValueError: level outside (0, 1), no values, or one that is NaN.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: use a share between 0 and 1, such as 0.95")
    low, high = np.quantile(checked(values, "resampled"), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
