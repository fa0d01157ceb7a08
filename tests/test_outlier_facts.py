"""Checks of outliers: closed forms, what is farther counts more, constant features, errors."""

import json

import numpy as np
import pytest

from ood_jax.outlier_facts import (
    gaussian_kl,
    nearest_distances,
    outlier_facts,
    separability,
)

RNG = np.random.default_rng(0)
INSIDE = RNG.normal(size=(400, 4)).astype(np.float32)


def test_gaussian_kl():
    two = np.array([[1.0, 0.0], [-1.0, 2.0]])  # mean (0, 1), variance 1
    np.testing.assert_allclose(gaussian_kl(two, two), 0, atol=1e-12)
    shifted = two + np.array([2.0, 0.0])  # KL = 2^2 / 2 in one of two dimensions
    np.testing.assert_allclose(gaussian_kl(two, shifted), 1.0, rtol=1e-6)
    wider = two * 2 + np.array([0.0, -1.0])  # (1/4 - 1 + ln 4) / 2 in both
    np.testing.assert_allclose(gaussian_kl(two, wider), (0.25 - 1 + np.log(4)) / 2, rtol=1e-6)
    narrower = (0.25 - 1 + np.log(4)) / 2 - (4 - 1 - np.log(4)) / 2
    np.testing.assert_allclose(gaussian_kl(two, wider) - gaussian_kl(wider, two), narrower)


def test_a_dimension_that_does_not_vary_gives_a_number():
    flat = INSIDE.copy()
    flat[:, 0] = 1
    assert gaussian_kl(flat, flat) == 0
    assert 10 < gaussian_kl(INSIDE, flat) < np.inf


def test_separability():
    far = INSIDE[:100] + np.float32(50)
    assert separability(INSIDE, far) == 1.0
    assert separability(far, INSIDE) == 1.0
    other = RNG.normal(size=(300, 4)).astype(np.float32)
    assert separability(INSIDE, other) < 0.6
    near, middle = INSIDE[:200] + np.float32(0.5), INSIDE[:200] + np.float32(1.5)
    assert 0.5 <= separability(INSIDE[200:], near) < separability(INSIDE[200:], middle) < 1


def test_nearest_distances():
    inside = np.eye(4, dtype=np.float32)
    outside = np.array([[2.0, 0, 0, 0], [-1.0, -1, -1, -1]], np.float32)
    found = nearest_distances(inside, outside)
    np.testing.assert_allclose(list(found["train"].values()), np.sqrt(2), rtol=1e-5)
    last = np.sqrt(3)  # cosine -1/2 with each axis
    np.testing.assert_allclose(found["outliers"]["0.5"], last / 2, rtol=1e-3)
    assert list(found["outliers"]) == ["0.05", "0.25", "0.5", "0.75", "0.95"]


def test_facts_grow_with_distance_and_are_json():
    near, far = (outlier_facts(INSIDE, INSIDE[:90] + np.float32(step)) for step in (0.1, 9))
    for found in (near, far):
        assert json.loads(json.dumps(found)) == found
    assert near["outliers"] == 90 and near["width"] == 4
    assert far["gaussian_kl"] > 10 * near["gaussian_kl"]
    assert far["separability"] > near["separability"]
    assert far["distances"]["outliers"]["0.5"] > near["distances"]["outliers"]["0.5"]
    assert outlier_facts(INSIDE, np.ones((7, 9))) == {"outliers": 7, "width": 9}


def test_what_cannot_be_compared_is_refused():
    for function in (gaussian_kl, separability, nearest_distances):
        with pytest.raises(ValueError, match="outlier features are 3 wide, the bank's 4"):
            function(INSIDE, INSIDE[:, :3])
        with pytest.raises(ValueError, match=r"5 outlier features .* \(zero variance\)"):
            function(INSIDE, np.ones((5, 4)))
        with pytest.raises(ValueError, match="not finite"):
            function(INSIDE, np.full((5, 4), np.nan))
