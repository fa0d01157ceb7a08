"""How well scores tell in-distribution from OOD images; exact, on the host, in float64.

Every function takes the scores of the in-distribution test images and those of the OOD images,
HIGHER = MORE OOD, and returns fractions in [0, 1], not percent (`ood_rank` alone is in percent,
as its paper has it). Ties are never broken: images of one score fall on one side together.
"""

from typing import NamedTuple

import numpy as np

from ood_jax.types import Array

RECALL = 0.95


class Curve(NamedTuple):
    """What a threshold accepts as in-distribution, for every distinct score.

    thresholds: float64 [T], ascending. in_accepted, out_accepted: int64 [T], images of each kind
    whose score is at most the threshold.
    """

    thresholds: np.ndarray
    in_accepted: np.ndarray
    out_accepted: np.ndarray


def all_metrics(in_scores: Array, out_scores: Array) -> dict[str, float | int]:
    """What results.json holds of one OOD set under one scorer.

    Args:
      in_scores: [N], out_scores: [M]; higher = more OOD.

    Returns:
      auroc, aupr_in, aupr_out, fpr95_id_positive, fpr95_ood_positive, detection_error: fractions;
      n_in, n_out: images.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    return {
        "auroc": _auroc(c),
        "aupr_in": _average_precision(c.in_accepted, c.out_accepted),
        "aupr_out": _average_precision(*_rejected(c)),
        "fpr95_id_positive": _fpr(c.in_accepted, c.out_accepted),
        "fpr95_ood_positive": _fpr(*_rejected(c)),
        "detection_error": _detection_error(c),
        "n_in": int(c.in_accepted[-1]),
        "n_out": int(c.out_accepted[-1]),
    }


def auroc(in_scores: Array, out_scores: Array) -> float:
    """P(an OOD image scores above an in-distribution one), a tie counting half (as scikit-learn).

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return _auroc(curve(in_scores, out_scores))


def aupr_in(in_scores: Array, out_scores: Array) -> float:
    """Average precision with in-distribution images as the positives.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    return _average_precision(c.in_accepted, c.out_accepted)


def aupr_out(in_scores: Array, out_scores: Array) -> float:
    """Average precision with OOD images as the positives.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return _average_precision(*_rejected(curve(in_scores, out_scores)))


def aupr_in_trapezoid(in_scores: Array, out_scores: Array) -> float:
    """`aupr_in` by the trapezoid rule, as OpenOOD has it: optimistic between the points.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    return _trapezoid(c.in_accepted, c.out_accepted)


def aupr_out_trapezoid(in_scores: Array, out_scores: Array) -> float:
    """`aupr_out` by the trapezoid rule, as OpenOOD has it.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return _trapezoid(*_rejected(curve(in_scores, out_scores)))


def fpr95_id_positive(in_scores: Array, out_scores: Array) -> float:
    """Share of OOD images accepted by the strictest threshold that accepts 95 % of the ID ones.

    The convention of ODIN, Winkens et al. and MCD.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    return _fpr(c.in_accepted, c.out_accepted)


def fpr95_ood_positive(in_scores: Array, out_scores: Array) -> float:
    """Share of ID images rejected by the strictest threshold that rejects 95 % of the OOD ones.

    The convention of OpenOOD, on all points of the curve.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return _fpr(*_rejected(curve(in_scores, out_scores)))


def detection_error(in_scores: Array, out_scores: Array) -> float:
    """Least over thresholds of the mean of both error rates: equal priors, whatever the sizes.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return _detection_error(curve(in_scores, out_scores))


def detection_accuracy(in_scores: Array, out_scores: Array) -> float:
    """1 - `detection_error`: the best accuracy at equal priors.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    return 1.0 - detection_error(in_scores, out_scores)


def detection_accuracy_prior(in_scores: Array, out_scores: Array) -> float:
    """The best accuracy over all images, so that the larger set weighs more.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    n_in, n_out = c.in_accepted[-1], c.out_accepted[-1]
    right = np.append(c.in_accepted + n_out - c.out_accepted, n_out)  # the last rejects them all
    return float(right.max() / (n_in + n_out))


def threshold(scores: Array, keep: float = RECALL) -> float:
    """The smallest of `scores` [N] that at least the share `keep` of them does not exceed.

    Of in-distribution calibration images: what lies strictly above it is called OOD. On the ID test
    images themselves and .95, the share of OOD images at or below it is `fpr95_id_positive`.

    Raises:
      ValueError: keep outside (0, 1], no scores, or a score that is NaN.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep}: use a share above 0 and at most 1, such as 0.95")
    ordered = np.sort(checked(scores, "calibration"))
    kept = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(ordered[np.argmax(kept >= keep)])


def ood_rank(in_scores: Array, scores: Array) -> np.ndarray:
    """Percentage of ID test images that look strictly more in-distribution than each image.

    Winkens et al. (2020), section 5, in the sense of its Fig. 5: 100 = more OOD than them all.

    Args:
      in_scores: [N], of the in-distribution test set. scores: [M], of any images.

    Returns:
      float64 [M], percent.

    Raises:
      ValueError: no in-distribution scores, or a score that is NaN.
    """
    ordered = np.sort(checked(in_scores, "in-distribution"))
    return 100.0 * np.searchsorted(ordered, checked(scores, "ranked"), "left") / len(ordered)


def roc_curve(in_scores: Array, out_scores: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC with OOD as the positives, no point dropped.

    Returns:
      (false positive rate, true positive rate, threshold), float64 [T + 1] each, from (0, 0) at
      threshold inf to (1, 1); an image is called OOD where its score reaches the threshold.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    c = curve(in_scores, out_scores)
    out_rejected, in_rejected = _rejected(c)
    false = np.append(0, in_rejected) / in_rejected[-1]
    true = np.append(0, out_rejected) / out_rejected[-1]
    return false, true, np.append(np.inf, c.thresholds[::-1])


def curve(in_scores: Array, out_scores: Array) -> Curve:
    """The counts that every metric is made of; see Curve.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    inside = np.sort(checked(in_scores, "in-distribution"))
    outside = np.sort(checked(out_scores, "OOD"))
    # Two sorted runs: the stable sort is one merge.
    both = np.sort(np.concatenate([inside, outside]), kind="stable")
    last = np.flatnonzero(np.append(both[1:] != both[:-1], True))
    thresholds = both[last]
    in_accepted = np.searchsorted(inside, thresholds, "right")
    return Curve(thresholds, in_accepted, last + 1 - in_accepted)


def checked(scores: Array, name: str) -> np.ndarray:
    """The scores as float64 [N]; `name` says whose they are where they are refused.

    Raises:
      ValueError: no scores, or a score that is NaN.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} scores of shape {list(values.shape)}: give one or more, as [N]")
    bad = int(np.isnan(values).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} {name} scores are NaN: look at the features of these images"
        )
    return values


def _rejected(c: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(OOD, ID) images whose score is at least the threshold, thresholds descending."""
    out_below = np.append(0, c.out_accepted[:-1])
    in_below = np.append(0, c.in_accepted[:-1])
    return (c.out_accepted[-1] - out_below)[::-1], (c.in_accepted[-1] - in_below)[::-1]


def _auroc(c: Curve) -> float:
    in_below = np.append(0, c.in_accepted[:-1])
    out_here = np.diff(c.out_accepted, prepend=0)
    twice = np.dot(out_here, in_below + c.in_accepted)  # whole numbers: exact
    return float(twice / (2 * int(c.in_accepted[-1]) * int(c.out_accepted[-1])))


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Counts accepted by ever laxer thresholds -> sum of precision x step in recall."""
    precision = positives / (positives + negatives)
    return float(np.dot(np.diff(positives, prepend=0), precision) / positives[-1])


def _trapezoid(positives: np.ndarray, negatives: np.ndarray) -> float:
    precision = np.append(1.0, positives / (positives + negatives))
    steps = np.diff(positives, prepend=0)
    return float(np.dot(steps, (precision[1:] + precision[:-1]) / 2) / positives[-1])


def _fpr(positives: np.ndarray, negatives: np.ndarray) -> float:
    first = np.argmax(positives / positives[-1] >= RECALL)
    return float(negatives[first] / negatives[-1])


def _detection_error(c: Curve) -> float:
    missed = 1.0 - c.in_accepted / c.in_accepted[-1]
    return float(np.min(0.5 * missed + 0.5 * c.out_accepted / c.out_accepted[-1]))
