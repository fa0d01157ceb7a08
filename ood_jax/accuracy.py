"""What a classifier gets right of the in-distribution classes, alone and beside an OOD score."""

import numpy as np

from ood_jax.metrics import checked
from ood_jax.types import Array


def accuracy(predicted: Array, labels: Array) -> float:
    """Share of labelled images whose class is predicted.

    predicted, labels: int [N]; a label below 0 = none, and the image is left out.

    Raises:
      ValueError: no labelled image, or shapes that differ.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"predictions {list(predicted.shape)} and labels {list(labels.shape)}: give one of each"
            " for every image, as [N]"
        )
    labelled = labels >= 0
    if not labelled.any():
        raise ValueError(f"none of {len(labels)} images has a label: accuracy needs one or more")
    return float(np.mean(predicted[labelled] == labels[labelled]))


def correct_rate(
    in_scores: Array, correct: Array, out_scores: Array, *, false_positive_rate: float
) -> float:
    """CCR at an FPR: share of ID images both accepted and classified correctly (Dhamija et al.
    2018, open-set recognition), as OpenOOD's ccr_fpr has it.

    Accepted are scores strictly below the ceil(FPR M)-th lowest OOD score, so that fewer than
    that many of the M OOD images are.

    Args:
      in_scores: [N], out_scores: [M]; higher = more OOD. correct: bool [N], of the ID images.

    Raises:
      ValueError: a rate outside (0, 1], no scores, NaN, or shapes that differ.
    """
    if not 0 < false_positive_rate <= 1:
        raise ValueError(f"false_positive_rate {false_positive_rate}: above 0 and at most 1")
    inside = checked(in_scores, "in-distribution")
    outside = np.sort(checked(out_scores, "OOD"))
    right = np.asarray(correct, bool)
    if right.shape != inside.shape:
        raise ValueError(f"correct {list(right.shape)} for {len(inside)} images: give [N]")
    limit = outside[int(np.ceil(false_positive_rate * len(outside))) - 1]
    return float(np.mean((inside < limit) & right))
