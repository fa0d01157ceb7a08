"""Detection of OOD images of like CLP, whatever their set: Winkens et al. (2020), Fig. 4c."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ood_jax import metrics
from ood_jax.bootstrap import bootstrap_auroc, interval

BINS, FEWEST = 8, 20  # of image-wise CLP; images of a bin
RESAMPLES = 1000


class Sample(NamedTuple):
    """One run. inside: float64 [N], scores of in-distribution test images. Of all OOD images that
    have a CLP: clp, scores float64 [M], near bool [M]."""

    inside: np.ndarray
    clp: np.ndarray
    scores: np.ndarray
    near: np.ndarray


def edges(samples: Sequence[np.ndarray], count: int = BINS, fewest: int = FEWEST) -> np.ndarray:
    """Edges float64 [B + 1] of bins of equal width over all values of CLP.

    A bin of less than `fewest` values in every sample is merged with the emptier of its neighbours.

    Args:
      samples: of each run, float64 [M], M >= 1 and all finite.
    """
    both = np.concatenate(samples)
    out = np.linspace(both.min(), both.max(), count + 1)
    while len(out) > 2:
        held = np.max([np.bincount(places(s, out), minlength=len(out) - 1) for s in samples], 0)
        small = int(np.argmin(held))
        if held[small] >= fewest:
            break
        last = len(held) - 1
        left = small == last or (small > 0 and held[small - 1] < held[small + 1])
        out = np.delete(out, small if left else small + 1)
    return out


def places(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The bin of each value; the last one holds its upper end."""
    inner = np.searchsorted(bounds, values, "right") - 1
    return inner.clip(0, len(bounds) - 2)


class Bin(NamedTuple):
    """One variant's images of like CLP; percent. near: is it so of half the images or more?"""

    auroc: float
    low: float
    high: float
    near: bool


def binned(samples: Sequence[Sample], bounds: np.ndarray) -> dict[int, Bin]:
    """Bin -> AUROC of its images against all in-distribution test images, over the runs.

    Bins that any run has fewer than FEWEST images of are not there. low, high: mean -/+ sample
    standard deviation over runs; of one run, the 95 % bootstrap interval.
    """
    parts = []
    for sample in samples:
        where = places(sample.clp, bounds)
        own = {i: where == i for i in range(len(bounds) - 1)}
        parts.append({i: chosen for i, chosen in own.items() if chosen.sum() >= FEWEST})
    shared = [i for i in parts[0] if all(i in part for part in parts)]
    areas = {
        i: [
            100 * metrics.auroc(sample.inside, sample.scores[part[i]])
            for sample, part in zip(samples, parts, strict=True)
        ]
        for i in shared
    }
    near = {i: float(samples[0].near[parts[0][i]].mean()) >= 0.5 for i in shared}
    if len(samples) == 1:
        ends = _intervals(samples[0], {i: parts[0][i] for i in shared})
    else:
        spread = {i: float(np.std(values, ddof=1)) for i, values in areas.items()}
        ends = {i: (fmean(v) - spread[i], fmean(v) + spread[i]) for i, v in areas.items()}
    return {i: Bin(fmean(areas[i]), *ends[i], near=near[i]) for i in shared}


def _intervals(sample: Sample, parts: dict[int, np.ndarray]) -> dict[int, tuple[float, float]]:
    drawn = bootstrap_auroc(
        sample.inside, {str(i): sample.scores[part] for i, part in parts.items()}, RESAMPLES
    )
    ends = {int(name): interval(values) for name, values in drawn.items()}
    return {i: (100 * low, 100 * high) for i, (low, high) in ends.items()}
