"""Mahalanobis scores against scikit-learn; low rank; shrinkage; what cannot be fitted."""

import jax
import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.mixture import GaussianMixture

from ood_jax import config, scorers, sharding
from ood_jax.scorers.covariance import Estimator, inverse_root, moments
from ood_jax.scorers.gaussian import (
    Dual,
    Whitened,
    fit_mixture,
    fit_rows,
    from_centred,
    from_moments,
    squared_distance,
    squared_distances,
)
from ood_jax.scorers.rows import rounded
from ood_jax.types import Features

MESH = sharding.make_mesh(1)
NONE = Estimator("none", 0.0)
PSEUDO = Estimator("none", 0.0, pseudo_inverse=True)


def data(count, width, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(width, width)) / np.sqrt(width) + np.eye(width)
    return np.float32(rng.normal(size=(count, width)) @ spread + offset * rng.normal(size=width))


def labels_of(*counts):
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def build(name, **settings):
    c = config.base("dino_negatives").score
    for key, value in settings.items():
        c[key] = value
    return scorers.build(name, c, MESH)


def scored(scorer, state, rows):
    return np.asarray(jax.jit(scorer.score)(state, Features(rows)))


@pytest.mark.parametrize("count, width", [(300, 12), (20, 50), (13, 12), (12, 12), (5, 40)])
def test_ledoit_wolf_is_scikit_learns(count, width):
    train, test = data(count, width), data(30, width, seed=1)
    expected = LedoitWolf().fit(np.float64(train))
    fitted = fit_rows(train, None, MESH, Estimator("ledoit_wolf", 0.0), "all")
    assert isinstance(fitted.gaussian, Whitened if count > width else Dual)
    np.testing.assert_allclose(fitted.amount, expected.shrinkage_, rtol=1e-5)
    found = squared_distance(fitted.gaussian, test)
    np.testing.assert_allclose(found, expected.mahalanobis(np.float64(test)), rtol=1e-4)
    log_det = np.linalg.slogdet(expected.covariance_)[1]
    np.testing.assert_allclose(fitted.gaussian.log_det, log_det, rtol=1e-4, atol=1e-4)


def test_no_shrinkage_is_the_empirical_covariance():
    train, test = data(200, 10), data(30, 10, seed=1)
    found = squared_distance(fit_rows(train, None, MESH, NONE, "all").gaussian, test)
    expected = EmpiricalCovariance().fit(np.float64(train)).mahalanobis(np.float64(test))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [200, 6])
def test_pseudo_inverse(count):
    train, test = data(count, 10), data(30, 10, seed=1)
    train[:, 3] = 2 * train[:, 1]  # singular in both forms
    found = squared_distance(fit_rows(train, None, MESH, PSEUDO, "all").gaussian, test)
    inverse = np.linalg.pinv(np.cov(np.float64(train).T, bias=True), rcond=1e-6)
    offsets = np.float64(test) - train.mean(0, dtype=np.float64)
    expected = np.einsum("ni,ij,nj->n", offsets, inverse, offsets)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_classwise_is_the_density_of_the_likeliest_class():
    train, test = data(600, 6), data(40, 6, seed=1)
    labels = labels_of(300, 200, 100)
    train += 2 * labels[:, None]
    scorer = build("mahalanobis", shrinkage="none")
    densities = []
    for c in range(3):
        rows = np.float64(train[labels == c])
        precision = np.linalg.inv(np.cov(rows.T, bias=True))
        mixture = GaussianMixture(1, weights_init=[1.0])
        mixture.weights_, mixture.means_ = np.ones(1), rows.mean(0)[None]
        mixture.precisions_cholesky_ = np.linalg.cholesky(precision)[None]
        densities.append(mixture.score_samples(np.float64(test)))
    found = scored(scorer, scorer.fit(Features(train, labels=labels)), test)
    np.testing.assert_allclose(found, -2 * np.max(densities, 0), rtol=1e-4)


@pytest.mark.parametrize("shrinkage", ["ridge", "trace", "ledoit_wolf"])
def test_low_rank_is_the_full_path(shrinkage):
    train, test = data(40, 48), data(30, 48, seed=1)
    how = Estimator(shrinkage, 1e-2, ddof=1)
    mean = train.mean(0, dtype=np.float64)
    low = from_centred(np.float32(train - mean), mean, MESH, how, "all")
    full = from_moments(moments(train, MESH, mean[None]), mean, how, "all")
    assert isinstance(low.gaussian, Dual) and isinstance(full.gaussian, Whitened)
    np.testing.assert_allclose(low.amount, full.amount, rtol=1e-5)
    np.testing.assert_allclose(low.gaussian.log_det, full.gaussian.log_det, rtol=1e-5)
    for rows in (test, train):
        found = squared_distance(low.gaussian, rows)
        np.testing.assert_allclose(found, squared_distance(full.gaussian, rows), rtol=1e-4)


def test_low_rank_with_a_small_ridge_does_not_cancel():
    train, test = data(40, 200), data(30, 200, seed=1)
    found = squared_distance(
        fit_rows(train, None, MESH, Estimator("trace", 1e-5), "all").gaussian, train
    )
    rows = np.float64(train)
    covariance = np.cov(rows.T, bias=True)
    covariance += 1e-5 * np.trace(covariance) / 200 * np.eye(200)
    offsets = rows - rows.mean(0)
    expected = np.einsum("ni,in->n", offsets, np.linalg.solve(covariance, offsets.T))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert (
        squared_distance(
            fit_rows(train, None, MESH, Estimator("trace", 1e-5), "all").gaussian, test
        ).min()
        > 100 * found.max()
    )


def test_classes_of_many_sizes_keep_their_order_and_cost_their_data():
    counts = (70, 5, 31, 9, 64, 33, 8, 200)
    width = 64
    train, labels = data(sum(counts), width), labels_of(*counts)
    members = tuple(np.flatnonzero(labels == c) for c in range(len(counts)))
    names = tuple(map(str, range(len(counts))))
    state = fit_mixture(train, members, names, MESH, Estimator("trace", 0.1))
    found, log_det = squared_distances(state, data(10, width, seed=1))
    for c, index in enumerate(members):
        one = fit_rows(train, index, MESH, Estimator("trace", 0.1), "one").gaussian
        expected = squared_distance(one, data(10, width, seed=1))
        np.testing.assert_allclose(found[c], expected, rtol=1e-5)
        np.testing.assert_allclose(log_det[c], one.log_det, rtol=1e-6)
    for group in state.groups:
        shapes = {x.shape[1:] for x in jax.tree.leaves(group) if x.ndim == 3}
        if isinstance(group, Dual):  # no n x n matrix
            assert shapes <= {(rounded(n), width) for n in counts if n <= width}
        else:
            assert shapes == {(width, width)}
    held = sum(x.size for group in state.groups for x in jax.tree.leaves(group))
    assert held < 3 * train.size


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_sizes_are_few_and_near(devices):
    sizes = [rounded(n, devices) for n in range(1, 4097)]
    assert all(n <= s and s % (8 * devices) == 0 for n, s in enumerate(sizes, 1))
    assert all(s < max(1.26 * n, n + 8 * devices) for n, s in enumerate(sizes, 1))
    assert len(set(sizes)) < 60


@pytest.mark.parametrize("count, width", [(300, 8), (30, 40)])
@pytest.mark.parametrize("name", ["mahalanobis_shared", "mahalanobis_relative"])
def test_shared_covariance_in_float64(name, count, width):
    train, test = data(count, width), data(25, width, seed=1)
    labels = np.random.default_rng(2).integers(0, 3, count).astype(np.int32)
    train += 3 * labels[:, None]
    scorer = build(name, shrinkage="ridge", shrinkage_strength=0.1)
    found = scored(scorer, scorer.fit(Features(train, labels=labels)), test)
    rows, far = np.float64(train), np.float64(test)
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])

    def distance(centred, offsets):
        inverse = np.linalg.inv(centred.T @ centred / count + 0.1 * np.eye(width))
        return np.einsum("ni,ij,nj->n", offsets, inverse, offsets)

    within = rows - means[labels]
    expected = np.min([distance(within, far - m) for m in means], 0)
    if name == "mahalanobis_relative":
        expected -= distance(rows - rows.mean(0), far - rows.mean(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    representation = scorer.facts(scorer.fit(Features(train, labels=labels)))["representation"]
    assert representation == ("full" if count > width else "low_rank")


@pytest.mark.parametrize("name", ["mahalanobis_shared", "mahalanobis_relative"])
def test_any_linear_map_of_the_features_is_the_same(name):
    train, test = data(400, 6), data(30, 6, seed=1)
    labels = labels_of(150, 150, 100)
    bend = data(6, 6, seed=5, offset=0.0)
    scorer = build(name, shrinkage="none")
    plain = scored(scorer, scorer.fit(Features(train, labels=labels)), test)
    bent = scored(scorer, scorer.fit(Features(train @ bend, labels=labels)), test @ bend)
    np.testing.assert_allclose(bent, plain, rtol=2e-3, atol=2e-3)


def test_far_from_the_origin():
    train, test = data(500, 8, offset=0.0), data(30, 8, seed=1, offset=0.0)
    scorer = build("mahalanobis", shrinkage="none")
    near = scored(scorer, scorer.fit(Features(train, labels=labels_of(250, 250))), test)
    far = scored(
        scorer, scorer.fit(Features(train + 1000, labels=labels_of(250, 250))), test + 1000
    )
    np.testing.assert_allclose(far, near, rtol=1e-2)


@pytest.mark.parametrize("shrinkage", ["none", "ledoit_wolf", "trace"])
def test_a_class_with_one_image(shrinkage):
    train, labels = data(101, 5), labels_of(100, 1)
    with pytest.raises(ValueError, match=r"covariance of class 1 is singular.*images 1, width 5"):
        build("mahalanobis", shrinkage=shrinkage).fit(Features(train, labels=labels))
    for name in ("mahalanobis_shared", "mahalanobis_relative"):
        scorer = build(name, shrinkage=shrinkage)
        assert scorer.facts(scorer.fit(Features(train, labels=labels)))["classes"] == 2


def test_a_ridge_carries_a_class_with_one_image():
    train, labels = data(101, 5), labels_of(100, 1)
    scorer = build("mahalanobis", shrinkage="ridge", shrinkage_strength=0.5)
    found = scored(scorer, scorer.fit(Features(train, labels=labels)), train[100:])
    np.testing.assert_allclose(found, 5 * np.log(2 * np.pi * 0.5), rtol=1e-4)


def test_a_constant_feature():
    train, labels = data(200, 5), labels_of(100, 100)
    train[:, 2] = 1.0
    with pytest.raises(ValueError, match=r"class 0 is singular .*use ledoit_wolf, trace or ridge"):
        build("mahalanobis", shrinkage="none").fit(Features(train, labels=labels))
    for name in ("mahalanobis", "mahalanobis_shared", "mahalanobis_relative"):
        scorer = build(name)
        moved = train[:1].repeat(2, 0)
        moved[1, 2] = 3.0
        found = scored(scorer, scorer.fit(Features(train, labels=labels)), moved)
        assert np.isfinite(found).all()


def test_identical_images():
    train = np.ones((20, 5), np.float32)
    with pytest.raises(ValueError, match=r"class 0 is singular under .*'ledoit_wolf'.*use ridge"):
        build("mahalanobis").fit(Features(train, labels=labels_of(20)))


def test_dependent_features_are_singular_and_small_ones_are_not():
    rows = np.float64(data(500, 4))
    covariance = np.cov(rows.T, bias=True)
    scale = np.diag([1.0, 1e-8, 1e4, 1.0])
    assert inverse_root(scale @ covariance @ scale) is not None
    dependent = np.column_stack([rows, rows[:, 0] - rows[:, 1]])
    assert inverse_root(np.cov(dependent.T, bias=True)) is None


def test_facts():
    train, labels = data(130, 20), labels_of(100, 20, 10)
    scorer = build("mahalanobis")
    facts = scorer.facts(scorer.fit(Features(train, labels=labels)))
    amounts = [LedoitWolf().fit(np.float64(train[labels == c])).shrinkage_ for c in range(3)]
    assert (facts["classes"], facts["full_rank"], facts["low_rank"]) == (3, 1, 2)
    assert (facts["shrinkage"], facts["divisor"]) == ("ledoit_wolf", "N")
    np.testing.assert_allclose(
        [facts["shrinkage_mean"], facts["shrinkage_min"], facts["shrinkage_max"]],
        [np.mean(amounts), min(amounts), max(amounts)],
        rtol=1e-4,
    )
