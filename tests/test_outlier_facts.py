"""Checks of outliers: closed forms, what is farther counts more, constant features, errors."""

import json

import numpy as np
import pytest

from ood_jax.outlier_facts import (
    MAPPED,
    gaussian_kl,
    lines,
    nearest_distances,
    outlier_facts,
    outlier_map,
    separability,
    warning,
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


def test_the_map_has_the_axes_of_both_sets_weighed_the_same():
    rng = np.random.default_rng(1)
    inside = rng.normal(size=(900, 5)) * [4, 1, 1, 1, 1]
    outside = rng.normal(size=(60, 5)) + np.array([0, 20, 0, 0, 0])
    found = outlier_map(inside, outside)
    assert found == outlier_map(inside.copy(), outside) == json.loads(json.dumps(found))
    # What is shown of 900 rows are every third, and all of 60.
    shown = inside[::3], outside
    assert [len(found[name]) for name in ("inside", "outliers")] == [300, 60]
    assert len(outlier_map(np.repeat(inside, 7, 0), outside)["inside"]) <= MAPPED
    means = [rows.mean(0) for rows in shown]
    middle = sum(means) / 2
    second = sum((rows - middle).T @ (rows - middle) / len(rows) for rows in shown) / 2
    values, vectors = np.linalg.eigh(second)
    np.testing.assert_allclose(found["explained"], values[::-1][:2] / values.sum(), rtol=1e-3)
    for name, rows in zip(("inside", "outliers"), shown, strict=True):
        expected = (rows - middle) @ vectors[:, ::-1][:, :2]
        signs = np.sign(np.sum(expected * found[name], 0))
        np.testing.assert_allclose(found[name], expected * signs, rtol=1e-2, atol=1e-3)
    # The gap between the means is the first axis, and they lie as far from the origin.
    ends = [np.mean(found[name], 0)[0] for name in ("inside", "outliers")]
    np.testing.assert_allclose(ends[0], -ends[1], rtol=1e-3)
    assert 9 < abs(ends[0]) < 11


def test_the_map_of_one_dimension_is_a_line():
    found = outlier_map(INSIDE[:, :1], INSIDE[:7, :1] + 9)
    assert found["explained"] == [1.0, 0.0]
    assert {y for _, y in found["inside"] + found["outliers"]} == {0.0}
    scale = outlier_map(1e-6 * INSIDE, 1e-6 * INSIDE + 1e-5)["inside"]
    assert len({x for x, _ in scale}) > 300  # digits that count, not decimals


def test_what_a_screen_says():
    apart, far = np.eye(8, dtype=np.float32), -np.ones((5, 8)) + np.eye(8)[:5] / 9
    facts = outlier_facts(apart, far)
    assert lines(facts) == [
        "5 outliers, 8 wide",
        f"KL of Gaussians, train to outliers: {facts['gaussian_kl']:.4g} nats a dimension",
        "k-means separability 1.000 (0.5 = the clusters tell nothing of the sets, 1 = they are the"
        " sets)",
        f"median distance to the nearest train embedding"
        f" {facts['distances']['outliers']['0.5']:.4g}; between train embeddings 1.414",
    ]
    assert lines(outlier_facts(INSIDE, np.ones((7, 9)))) == [
        "7 outliers, 9 wide: another width than the train embeddings', so nothing is compared"
    ]
    inside = lines(outlier_facts(INSIDE, INSIDE[:50] + np.float32(1e-4)))
    assert inside[-1].startswith("warning: overlap") and len(inside) == 5


def test_distances_that_teach_nothing_are_warned_of():
    train = {"0.5": 0.2, "0.95": 0.4}
    said = {x: warning({"train": train, "outliers": {"0.5": x}})[:4] for x in (0.2, 0.21, 1.2, 1.3)}
    assert said == {0.2: "over", 0.21: "", 1.2: "", 1.3: "very"}


def test_what_cannot_be_compared_is_refused():
    for function in (gaussian_kl, separability, nearest_distances, outlier_map):
        with pytest.raises(ValueError, match="outlier features are 3 wide, the bank's 4"):
            function(INSIDE, INSIDE[:, :3])
        with pytest.raises(ValueError, match=r"5 outlier features .* \(zero variance\)"):
            function(INSIDE, np.ones((5, 4)))
        with pytest.raises(ValueError, match="not finite"):
            function(INSIDE, np.full((5, 4), np.nan))
