"""Golden knn_accuracy: knn_classifier of the released code, the same as DINO's eval_knn.py."""

import re

import numpy as np
import pytest

from ood_jax.scorers.knn import knn_accuracy, weighted_knn_log_votes


def test_votes_and_accuracy(golden):
    g = golden("knn_accuracy")
    settings = sorted({key.split("/")[0] for key in g if "/" in key})
    assert settings
    for setting in settings:
        match = re.fullmatch(r"k(\d+)_T([\d.]+)", setting)
        assert match is not None
        numbers = {"neighbours": int(match[1]), "temperature": float(match[2]), "block": 300}
        votes = weighted_knn_log_votes(
            g["bank"], g["bank_labels"], g["test"], classes=int(g["num_classes"]), **numbers
        )
        expected = g[f"{setting}/log_votes"]
        none = expected == -100.0
        assert np.all(np.isneginf(votes[none]))
        np.testing.assert_allclose(votes[~none], expected[~none], atol=1e-3, rtol=0)
        np.testing.assert_array_equal(votes.argmax(1), g[f"{setting}/pred"])
        top5 = np.argsort(-votes, axis=1, kind="stable")[:, :5]
        correct = np.mean((top5 == g["test_labels"][:, None]).any(1))
        assert 100 * correct == pytest.approx(float(g[f"{setting}/top5"]), abs=1e-9)
        accuracy = knn_accuracy(g["bank"], g["bank_labels"], g["test"], g["test_labels"], **numbers)
        assert 100 * accuracy == pytest.approx(float(g[f"{setting}/top1"]), abs=1e-9)
