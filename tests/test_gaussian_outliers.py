"""Tails of Gaussians: distances against NumPy, the shared covariance, the least likely, errors."""

import jax
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.gaussian_outliers import GaussianSettings, gaussian_outliers

SETTINGS = GaussianSettings(draws=500, keep=2, rounds=3)


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3 * 2  # numbers with gaps
    mix = rng.normal(size=(4, 4))
    rows = 5 * rng.normal(size=(5, 4))[labels] + rng.normal(size=(60, 4)) @ mix
    return rows.astype(np.float32), labels


def squares_about(rows, labels, found, ridge):
    """Mahalanobis under the class means and the covariance about them, float64."""
    means = {c: rows[labels == c].mean(0, dtype=np.float64) for c in np.unique(labels)}
    centred = rows - np.stack([means[c] for c in labels])
    inverse = np.linalg.inv(centred.T @ centred / len(rows) + ridge * np.eye(rows.shape[1]))
    offsets = found.outliers - np.stack([means[c] for c in found.labels])
    return np.einsum("nd,de,ne->n", offsets, inverse, offsets)


def test_distances_are_those_of_the_shared_covariance(embeddings):
    found = gaussian_outliers(*embeddings, settings=SETTINGS, key=jax.random.key(0))
    assert found.outliers.shape == (18, 4) and np.all(found.source == -1)
    np.testing.assert_array_equal(found.labels, np.repeat([0, 2, 4], 6))
    wanted = squares_about(*embeddings, found, SETTINGS.ridge)
    np.testing.assert_allclose(found.distances, wanted, rtol=1e-3)
    assert np.all(np.diff(found.distances.reshape(-1, 2)) <= 0)


def test_the_least_likely_are_kept(embeddings):
    from scipy.stats import chi2

    settings = GaussianSettings(draws=500, keep=1, rounds=200, class_wise=False)
    found = gaussian_outliers(embeddings[0], None, settings=settings, key=jax.random.key(0))
    # The largest of n has distribution F^n: its median under chi-squared.
    np.testing.assert_allclose(
        np.median(found.distances), chi2.ppf(0.5 ** (1 / 500), df=4), rtol=0.05
    )
    every = settings._replace(draws=1, rounds=4000)
    some = gaussian_outliers(embeddings[0], None, settings=every, key=jax.random.key(1))
    np.testing.assert_allclose(some.outliers.mean(0), embeddings[0].mean(0), atol=0.5)
    covariance = np.cov(embeddings[0].T)
    error = np.abs(np.cov(some.outliers.T) - covariance).max()
    assert error < 0.1 * np.abs(covariance).max()


def test_devices_and_keys(embeddings):
    one, two, other = (
        gaussian_outliers(
            *embeddings, settings=SETTINGS, key=jax.random.key(seed), mesh=sharding.make_mesh(n)
        )
        for seed, n in ((0, 1), (0, 2), (1, 1))
    )
    np.testing.assert_allclose(one.outliers, two.outliers, rtol=1e-4, atol=1e-4)
    assert np.abs(one.outliers - other.outliers).max() > 0.1


def test_what_makes_no_sense_is_refused(embeddings):
    def refused(message, rows=embeddings[0], labels=embeddings[1], **change):
        with pytest.raises(ValueError, match=message):
            settings = SETTINGS._replace(**change)
            gaussian_outliers(rows, labels, settings=settings, key=jax.random.key(0))

    refused("method.draws = 0: use 1 or more", draws=0)
    refused("method.keep = 501 of method.draws = 500", keep=501)
    refused("method.ridge = 0: use a number above 0", ridge=0)
    refused("needs labels", labels=None)
    refused("zero variance", rows=np.ones((60, 4)))
    refused(r"a bank of 1 embeddings \(class 9\)", labels=np.where(np.arange(60) == 5, 9, 0))
