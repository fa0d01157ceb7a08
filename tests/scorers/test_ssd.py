"""SSD: clusters, invariances, dimensions that do not vary."""

import jax
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from ood_jax import config, scorers, sharding
from ood_jax.types import Features


def build(**settings):
    c = config.base("dino_negatives").score
    for key, value in settings.items():
        c[key] = value
    return scorers.build("ssd", c, sharding.make_mesh(1))


def data(count=240, width=10, seed=0):
    rng = np.random.default_rng(seed)
    centres = 4 * np.eye(width)[rng.integers(0, 3, count)]
    return np.float32(centres + rng.normal(size=(count, width)) * np.linspace(0.5, 1, width))


def scored(scorer, train, rows):
    state = scorer.fit(Features(train))
    return np.asarray(jax.jit(scorer.score)(state, Features(rows)))


def normalised(rows):
    rows = np.float64(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_one_cluster_is_scikit_learns_ledoit_wolf():
    train, test = data(), data(30, seed=1)
    mean, deviation = normalised(train).mean(0), normalised(train).std(0)
    found = LedoitWolf().fit((normalised(train) - mean) / deviation)
    expected = found.mahalanobis((normalised(test) - mean) / deviation)
    np.testing.assert_allclose(scored(build(), train, test), expected, rtol=1e-4)
    facts = build().facts(build().fit(Features(train)))
    np.testing.assert_allclose(facts["shrinkage_mean"], found.shrinkage_, rtol=1e-4)


def test_norms_and_labels_do_not_count():
    train, test = data(), data(30, seed=1)
    scales = np.random.default_rng(2).uniform(0.1, 10, (240, 1)).astype(np.float32)
    scorer = build(clusters=3)
    plain = scored(scorer, train, test)
    np.testing.assert_allclose(scored(scorer, train * scales, test * 3), plain, rtol=1e-3)
    labelled = scorer.fit(Features(train, labels=np.zeros(240, np.int32)))
    np.testing.assert_array_equal(
        np.asarray(scorer.score(labelled, Features(test))).argsort(), plain.argsort()
    )
    assert "labels" not in scorer.needs


def test_clusters_tell_more_than_one():
    train, test = data(), data(60, seed=1)
    between = np.float32(np.abs(np.random.default_rng(3).normal(size=(60, 10))) + 2)
    margins = []
    for clusters in (1, 3):
        scorer = build(clusters=clusters)
        state = scorer.fit(Features(train))
        assert scorer.facts(state)["clusters"] == clusters
        near, far = (np.asarray(scorer.score(state, Features(x))) for x in (test, between))
        margins.append(np.mean(far[:, None] > near))
    assert margins[1] >= margins[0] and margins[1] > 0.9


def test_a_dimension_that_does_not_vary_does_not_count():
    train, test = data(), data(30, seed=1)
    train[:, 4] = 0
    test[:, 4] = 0
    scorer = build()
    moved = np.array(normalised(test), np.float32)
    found = scored(scorer, train, test)
    assert scorer.facts(scorer.fit(Features(train)))["constant_dimensions"] == 1
    np.testing.assert_allclose(scored(scorer, train, moved), found, rtol=1e-3)
    without = [np.delete(x, 4, axis=1) for x in (train, test)]
    plain = scored(build(shrinkage="none"), *without)
    np.testing.assert_allclose(scored(build(shrinkage="none"), train, test), plain, rtol=1e-3)


def test_train_sets_that_cannot_be_clustered():
    with pytest.raises(ValueError, match="all train features point the same way"):
        build().fit(Features(np.arange(1, 9, dtype=np.float32)[:, None] * np.ones(5, np.float32)))
    with pytest.raises(ValueError, match=r"score.clusters = 300: .* too few .*240 images"):
        build(clusters=300).fit(Features(data()))
    with pytest.raises(ValueError, match=r"score.clusters = 4: .* too few"):
        build(clusters=4).fit(Features(data(3).repeat(9, axis=0)))
