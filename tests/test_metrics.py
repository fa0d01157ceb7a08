"""Metrics against scikit-learn, brute force and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)
from sklearn.metrics import roc_curve as sklearn_roc_curve

from ood_jax import metrics

KEYS = {
    "auroc",
    "aupr_in",
    "aupr_out",
    "fpr95_id_positive",
    "fpr95_ood_positive",
    "detection_error",
    "n_in",
    "n_out",
}
SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)


def scores(n_in=300, n_out=200, decimals=1, seed=0):
    """Tied scores; the OOD ones are higher by 1 on average."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, n_in).round(decimals), rng.normal(1, 1, n_out).round(decimals)


def sklearn_form(inside, outside):
    return (
        np.append(np.zeros(len(inside)), np.ones(len(outside))),
        np.append(inside, outside),
    )


def fpr(positive, negative):
    """Brute force: share of negatives at or above the highest threshold of 95 % recall."""
    reached = [t for t in np.append(positive, negative) if np.mean(positive >= t) >= 0.95]
    return np.mean(negative >= max(reached))


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES)
def test_every_metric_is_its_definition(inside, outside):
    inside, outside = np.array(inside), np.array(outside)
    out, all_scores = sklearn_form(inside, outside)
    found = metrics.all_metrics(inside, outside)
    assert set(found) == KEYS
    assert found["auroc"] == pytest.approx(roc_auc_score(out, all_scores), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(out, all_scores), abs=1e-12)
    precision_in = average_precision_score(1 - out, -all_scores)
    assert found["aupr_in"] == pytest.approx(precision_in, abs=1e-12)
    assert found["fpr95_ood_positive"] == pytest.approx(fpr(outside, inside), abs=1e-12)
    assert found["fpr95_id_positive"] == pytest.approx(fpr(-inside, -outside), abs=1e-12)
    errors = [
        0.5 * np.mean(inside > t) + 0.5 * np.mean(outside <= t)
        for t in np.append(all_scores, -np.inf)
    ]
    assert found["detection_error"] == pytest.approx(min(errors), abs=1e-12)
    assert (found["n_in"], found["n_out"]) == (len(inside), len(outside))
    for name in KEYS - {"n_in", "n_out"}:
        assert getattr(metrics, name)(inside, outside) == found[name]


def test_trapezoids_accuracies_and_roc_are_scikit_learns():
    inside, outside = scores()
    out, all_scores = sklearn_form(inside, outside)
    precision, recall, _ = precision_recall_curve(out, all_scores)
    assert metrics.aupr_out_trapezoid(inside, outside) == pytest.approx(auc(recall, precision))
    precision, recall, _ = precision_recall_curve(1 - out, -all_scores)
    assert metrics.aupr_in_trapezoid(inside, outside) == pytest.approx(auc(recall, precision))
    assert metrics.detection_accuracy(inside, outside) == 1 - metrics.detection_error(
        inside, outside
    )
    for ours, theirs in zip(
        metrics.roc_curve(inside, outside),
        sklearn_roc_curve(out, all_scores, drop_intermediate=False),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-15)


def test_prior_accuracy_counts_images_not_sets():
    # One OOD image under two of three: rejecting nothing is best.
    assert metrics.detection_accuracy_prior([0, 1, 2], [0.5]) == 0.75
    assert metrics.detection_accuracy([0, 1, 2], [0.5]) == pytest.approx(2 / 3)
    assert metrics.detection_accuracy_prior([5.0], [1, 1, 1]) == 0.75  # rejects them all


def test_perfect_reversed_and_tied_scores():
    assert metrics.all_metrics([0, 1], [2, 3, 4]) == {
        "auroc": 1.0,
        "aupr_in": 1.0,
        "aupr_out": 1.0,
        "fpr95_id_positive": 0.0,
        "fpr95_ood_positive": 0.0,
        "detection_error": 0.0,
        "n_in": 2,
        "n_out": 3,
    }
    assert metrics.auroc([2, 3], [0, 1]) == 0.0
    tied = metrics.all_metrics(np.zeros(30), np.zeros(10))
    assert tied["auroc"] == tied["detection_error"] == 0.5
    assert tied["fpr95_id_positive"] == tied["fpr95_ood_positive"] == 1.0
    assert (tied["aupr_in"], tied["aupr_out"]) == (0.75, 0.25)


def test_exactly_95_percent_is_enough():
    inside, outside = np.arange(20.0), np.array([18.5])
    assert metrics.fpr95_id_positive(inside, outside) == 0.0  # 19 of 20 are below 18.5
    assert metrics.fpr95_id_positive(inside[1:], outside) == 1.0  # 18 of 19 are not 95 %


def test_ood_rank_is_the_share_that_looks_more_in_distribution():
    ranks = metrics.ood_rank([1.0, 2.0, 2.0, 3.0], [0.0, 2.0, 2.5, 9.0])
    np.testing.assert_array_equal(ranks, [0.0, 25.0, 75.0, 100.0])


def test_infinite_scores_are_extreme_not_wrong():
    assert metrics.auroc([-np.inf, 0.0], [1.0, np.inf]) == 1.0


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], r"in-distribution scores of shape \[0\]"),
        ([1.0], [], r"OOD scores of shape \[0\]"),
        ([1.0, np.nan], [1.0], "1 of 2 in-distribution scores are NaN"),
        ([1.0], [np.nan], "1 of 1 OOD scores are NaN"),
        ([[1.0]], [1.0], r"shape \[1, 1\]"),
    ],
)
def test_scores_that_cannot_be_judged(inside, outside, message):
    with pytest.raises(ValueError, match=message):
        metrics.all_metrics(inside, outside)


@settings(deadline=None, max_examples=60)
@given(SCORES, st.floats(0.01, 1.0))
def test_threshold_is_the_smallest_score_that_keeps_enough(values, keep):
    found = metrics.threshold(values, keep)
    kept = {t: np.mean(np.array(values) <= t) for t in values}
    assert kept[found] >= keep
    assert all(share < keep for t, share in kept.items() if t < found)


def test_threshold_counts_exactly_and_agrees_with_fpr95():
    assert metrics.threshold(np.arange(1, 101)[::-1], 0.07) == 7  # 0.07 * 100 > 7 in floating point
    assert metrics.threshold(np.arange(20)) == 18
    assert metrics.threshold([3, 3, 3, 9]) == 9 and metrics.threshold([2.0]) == 2
    inside, outside = scores()
    accepted = np.mean(outside <= metrics.threshold(inside))
    assert accepted == metrics.fpr95_id_positive(inside, outside)


@pytest.mark.parametrize(
    ("values", "keep", "message"),
    [
        ([], 0.95, r"calibration scores of shape \[0\]"),
        ([1.0, np.nan], 0.95, "1 of 2 calibration scores are NaN"),
        ([1.0], 0.0, "keep 0.0"),
        ([1.0], 95, "keep 95: use a share"),
        ([1.0], np.nan, "keep nan"),
    ],
)
def test_thresholds_that_cannot_be_set(values, keep, message):
    with pytest.raises(ValueError, match=message):
        metrics.threshold(values, keep)
