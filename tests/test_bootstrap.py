"""Bootstrapped AUROC against scikit-learn's weighted one, and its intervals on a known case."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ood_jax import bootstrap, metrics
from ood_jax.bootstrap import bootstrap_auroc, interval


def scores(n_in=80, seed=0, **sets):
    """Tied scores; the OOD ones are higher by 1 on average."""
    rng = np.random.default_rng(seed)
    inside = rng.normal(0, 1, n_in).round(1)
    return inside, {name: rng.normal(1, 1, n).round(1) for name, n in sets.items()}


def test_each_resample_is_the_weighted_auroc(monkeypatch):
    inside, sets = scores(near=50, far=30)
    drawn, draw = [], bootstrap._drawn

    def recorded(random, count):
        drawn.append(draw(random, count))
        return drawn[-1]

    monkeypatch.setattr(bootstrap, "_drawn", recorded)
    found = bootstrap_auroc(inside, sets, 5)
    assert {name: len(values) for name, values in found.items()} == {"near": 5, "far": 5}
    for r in range(5):
        one, *others = drawn[3 * r : 3 * r + 3]  # the same in-distribution images for both sets
        for rows, (name, outside) in zip(others, sets.items(), strict=True):
            out = np.append(np.zeros(len(inside)), np.ones(len(outside)))
            weight = np.append(
                np.bincount(one, minlength=len(inside)), np.bincount(rows, minlength=len(outside))
            )
            expected = roc_auc_score(
                out, np.append(np.sort(inside), np.sort(outside)), sample_weight=weight
            )
            assert found[name][r] == pytest.approx(expected, abs=1e-12)


def test_a_set_does_not_depend_on_those_beside_it():
    inside, sets = scores(near=50, far=30)
    together = bootstrap_auroc(inside, sets, 20)
    alone = bootstrap_auroc(inside, {"far": sets["far"]}, 20)
    np.testing.assert_array_equal(together["far"], alone["far"])
    again = bootstrap_auroc(inside, sets, 20, seed=1)
    assert (together["near"] != again["near"]).any()
    # One set under two names: the same images inside, others outside.
    twins = bootstrap_auroc(inside, {"a": sets["near"], "b": sets["near"]}, 400)
    correlation = np.corrcoef(twins["a"], twins["b"])[0, 1]
    assert 0.2 < correlation < 0.99


def test_constant_and_separated_scores():
    values = bootstrap_auroc(np.ones(7), {"same": np.ones(9), "above": np.full(9, 2.0)}, 10)
    np.testing.assert_array_equal(values["same"], 0.5)
    np.testing.assert_array_equal(values["above"], 1.0)
    assert interval(values["same"]) == (0.5, 0.5)
    assert bootstrap_auroc([0.0], {"x": [-np.inf, np.inf]}, 50)["x"].min() == 0.0
    assert bootstrap_auroc([0.0], {}, 10) == {}


def test_the_interval_covers_the_truth_and_is_as_wide_as_the_spread():
    truth = norm.cdf(1 / np.sqrt(2))
    rng = np.random.default_rng(0)
    covered, widths, aurocs = 0, [], []
    for trial in range(200):
        inside, outside = rng.normal(0, 1, 120), rng.normal(1, 1, 120)
        low, high = interval(bootstrap_auroc(inside, {"x": outside}, 200, seed=trial)["x"])
        covered += low <= truth <= high
        widths.append(high - low)
        aurocs.append(metrics.auroc(inside, outside))
    assert 0.9 <= covered / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(aurocs), rel=0.15)


def test_interval_is_of_percentiles():
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))
    narrow, wide = interval(np.arange(101.0), 0.5), interval(np.arange(101.0))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], {"x": [1.0]}, 0), "0 resamples: use 1 or more"),
        (([], {"x": [1.0]}, 1), r"in-distribution scores of shape \[0\]"),
        (([0.0], {"x": [np.nan]}, 1), "1 of 1 x OOD scores are NaN"),
    ],
)
def test_what_cannot_be_resampled(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_auroc(*arguments)


@pytest.mark.parametrize("level", [0, 1, 95, np.nan])
def test_levels_that_make_no_sense(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval(np.arange(3.0), level)
