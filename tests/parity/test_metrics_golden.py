"""Golden metrics: OpenOOD's compute_all_metrics, scikit-learn, both FPR95 conventions, ranks."""

import numpy as np
import pytest

from ood_jax import metrics
from ood_jax.accuracy import accuracy, correct_rate

CLOSE = 1e-9


@pytest.fixture
def arrays(golden):
    """(golden arrays, ID scores, OOD scores); its confidence is high for ID images."""
    g = golden("metrics")
    out = g["label"] == -1
    return g, -g["conf"][~out], -g["conf"][out]


def test_metrics_golden(arrays):
    g, inside, outside = arrays
    expected = {
        metrics.auroc: ("openood_auroc", "sk_auroc"),
        metrics.aupr_in: ("sk_ap_in",),
        metrics.aupr_out: ("sk_ap_out",),
        metrics.aupr_in_trapezoid: ("openood_aupr_in",),
        metrics.aupr_out_trapezoid: ("openood_aupr_out",),
        metrics.fpr95_id_positive: ("fpr95_id_positive",),
        metrics.fpr95_ood_positive: ("exact_fpr95_ood_positive",),
        metrics.detection_error: ("detection_error",),
        metrics.detection_accuracy: ("detection_accuracy_balanced",),
        metrics.detection_accuracy_prior: ("detection_accuracy_prior",),
    }
    for metric, names in expected.items():
        for name in names:
            assert metric(inside, outside) == pytest.approx(float(g[name]), abs=CLOSE), name


def test_ood_rank(arrays):
    g, inside, outside = arrays
    rank = metrics.ood_rank(inside, outside)
    np.testing.assert_allclose(rank, g["ood_rank_more_id"], atol=CLOSE)
    # The paper's own words have it the other way round: the share that looks less in-distribution.
    literal = metrics.ood_rank(-inside, -outside)
    np.testing.assert_allclose(literal, g["ood_rank_literal"], atol=CLOSE)


def test_fpr95_on_the_corners_of_our_curve(arrays):
    """OpenOOD's and scikit-learn's default: points on a straight piece of the ROC are dropped."""
    g, inside, outside = arrays
    curve = metrics.roc_curve(inside, outside)
    assert _fpr95_at_corners(*curve, outside, inside) == pytest.approx(
        float(g["openood_fpr95"]), abs=CLOSE
    )
    turned = metrics.roc_curve(-outside, -inside)
    assert _fpr95_at_corners(*turned, inside, outside) == pytest.approx(
        float(g["fpr95_id_positive_sklearn"]), abs=CLOSE
    )


def _fpr95_at_corners(false, true, _, positives, negatives):
    counts = np.rint(false * len(negatives)), np.rint(true * len(positives))
    bends = np.any([np.diff(c, 2) != 0 for c in counts], axis=0)
    corner = np.concatenate([[True], bends, [True]])
    return false[corner][np.argmax(true[corner] >= 0.95)]


def test_predictions(arrays):
    g, inside, outside = arrays
    assert accuracy(g["pred"], g["label"]) == pytest.approx(float(g["openood_acc"]), abs=CLOSE)
    known = g["label"] != -1
    correct = g["pred"][known] == g["label"][known]
    for name, rate in (("ccr_fpr_0_1", 0.1), ("ccr_fpr_0_01", 0.01)):
        found = correct_rate(inside, correct, outside, false_positive_rate=rate)
        assert found == pytest.approx(float(g[name]), abs=CLOSE), name
