"""Accuracy and the correct rate at a false positive rate, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ood_jax.accuracy import accuracy, correct_rate


def test_accuracy_leaves_images_without_a_label_out():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(-1, 4, 50), rng.integers(0, 4, 50)
    known = labels >= 0
    assert accuracy(predicted, labels) == accuracy_score(labels[known], predicted[known])
    assert accuracy([1, 0, 2], [1, -1, 0]) == 0.5


def test_correct_rate_by_hand():
    inside, right = [0.0, 1.0, 2.0, 3.0], [True, False, True, True]
    outside = [1.5, 2.5, 3.5, 4.5]
    rates = [
        correct_rate(inside, right, outside, false_positive_rate=f) for f in (0.01, 0.25, 0.5, 1.0)
    ]
    # Accepted: scores below 1.5, 1.5, 2.5 and 4.5.
    assert rates == [0.25, 0.25, 0.5, 0.75]
    assert correct_rate([1.0], [True], [1.0], false_positive_rate=0.5) == 0.0  # a tie is not below


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([0], [0, 1]), r"predictions \[1\] and labels \[2\]"),
        (lambda: accuracy([0, 1], [-1, -1]), "none of 2 images has a label"),
        (lambda: correct_rate([0], [True], [1], false_positive_rate=0), "above 0 and at most 1"),
        (lambda: correct_rate([0], [True, False], [1], false_positive_rate=0.1), r"correct \[2\]"),
        (lambda: correct_rate([np.nan], [True], [1], false_positive_rate=0.1), "are NaN"),
    ],
)
def test_what_cannot_be_judged(call, message):
    with pytest.raises(ValueError, match=message):
        call()
