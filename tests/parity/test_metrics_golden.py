"""Golden metrics: OpenOOD's compute_all_metrics, scikit-learn, both FPR95 conventions, ranks."""

import numpy as np
import pytest

from ood_jax import metrics


def test_metrics_golden(golden):
    g = golden("metrics")
    out = g["label"] == -1
    inside, outside = -g["conf"][~out], -g["conf"][out]  # its confidence is high for ID images
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
            assert metric(inside, outside) == pytest.approx(float(g[name]), abs=1e-9), name
    rank = metrics.ood_rank(inside, outside)
    np.testing.assert_allclose(rank, g["ood_rank_more_id"], atol=1e-9)
