"""Mahalanobis distance to the classes of the train set: class-wise, shared, relative."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.cosine import check_features, pick
from ood_jax.scorers.covariance import Estimator, estimator, moments
from ood_jax.scorers.gaussian import (
    Fitted,
    Gaussian,
    Mixture,
    Whitened,
    fit_mixture,
    fit_rows,
    from_centred,
    from_moments,
    squared_distance,
    squared_distances,
    whiten,
)
from ood_jax.scorers.rows import Labelled, check_width, float_type, labelled, mean_of
from ood_jax.types import Array, Features, Scorer


def mahalanobis(config: ConfigDict, mesh: Mesh) -> Scorer:
    """One Gaussian a class (Winkens et al. 2020, Eq. 2): min_c [d_c^2 + log((2 pi)^n det S_c)].

    The negative of the paper's score. Covariances are divided by the images N of the class and
    shrunk (config.shrinkage), which the paper leaves open; where N <= n no n x n matrix is made.

    Raises:
      ValueError: settings of the shrinkage that make no sense.
    """
    how = estimator(config)

    def fit(features: Features) -> Mixture:
        rows = check_features(pick(features, config.feature), "train")
        found = labelled(features, "mahalanobis")
        return fit_mixture(rows, found.rows, _names(found), mesh, how)

    def score(state: Mixture, features: Features) -> jax.Array:
        return classwise_score(state, pick(features, config.feature))

    return Scorer(fit, score, (config.feature, "labels"), facts=lambda s: mixture_facts(s, how))


def classwise_score(state: Mixture, rows: Array) -> jax.Array:
    """-max_c of Winkens Eq. 2 for rows [N, n]: [N]."""
    check_width(rows, state.groups[0].mean.shape[-1])
    squared, log_det = squared_distances(state, rows)
    return jnp.min(squared + log_det[:, None], axis=0) + rows.shape[1] * math.log(2 * math.pi)


def mixture_facts(state: Mixture, how: Estimator) -> dict[str, Any]:
    """The shrinkage of each Gaussian in three numbers, and how many are held in which form."""
    amounts = np.asarray(state.amounts, np.float64)
    low = sum(len(g.mean) for g in state.groups if not isinstance(g, Whitened))
    return {
        "classes": len(amounts),
        "divisor": "N",
        "shrinkage": how.shrinkage,
        "shrinkage_mean": float(amounts.mean()),
        "shrinkage_min": float(amounts.min()),
        "shrinkage_max": float(amounts.max()),
        "full_rank": len(amounts) - low,
        "low_rank": low,
    }


class Shared(struct.PyTreeNode):
    """Classes [C] with one covariance. gaussian: about the mean of all images.

    points: the class means as `whiten` sees them, [C, r]. amount: of shrinkage, [].
    """

    gaussian: Gaussian
    points: Array
    amount: Array


def mahalanobis_shared(config: ConfigDict, mesh: Mesh) -> Scorer:
    """One within-class covariance for all classes (Lee et al. 2018; MDS of OpenOOD): min_c d_c^2.

    With config.shrinkage = none a singular covariance is pseudo-inverted, as OpenOOD's
    scikit-learn does. Divided by the number of images.

    Raises:
      ValueError: settings of the shrinkage that make no sense.
    """
    how = estimator(config, pseudo_inverse=True)

    def fit(features: Features) -> Shared:
        rows = check_features(pick(features, config.feature), "train")
        return fit_shared(rows, labelled(features, "mahalanobis_shared"), mesh, how)

    def score(state: Shared, features: Features) -> jax.Array:
        return nearest_class(state, pick(features, config.feature))

    return Scorer(fit, score, (config.feature, "labels"), facts=lambda s: _shared_facts(s, how))


class Relative(struct.PyTreeNode):
    """background: one Gaussian of all images."""

    shared: Shared
    background: Gaussian


def mahalanobis_relative(config: ConfigDict, mesh: Mesh) -> Scorer:
    """mahalanobis_shared minus d^2 to one Gaussian of all images (Ren et al. 2021; RMDS).

    Both covariances are shrunk, each by its own amount; images without a label are in neither.

    Raises:
      ValueError: settings of the shrinkage that make no sense.
    """
    how = estimator(config, pseudo_inverse=True)

    def fit(features: Features) -> Relative:
        rows = check_features(pick(features, config.feature), "train")
        found = labelled(features, "mahalanobis_relative")
        background = fit_rows(rows, _all(found, len(rows)), mesh, how, "all images").gaussian
        return Relative(fit_shared(rows, found, mesh, how), background)

    def score(state: Relative, features: Features) -> jax.Array:
        rows = pick(features, config.feature)
        return nearest_class(state.shared, rows) - squared_distance(state.background, rows)

    facts = lambda state: _shared_facts(state.shared, how)  # noqa: E731
    return Scorer(fit, score, (config.feature, "labels"), facts=facts)


def fit_shared(rows: np.ndarray, found: Labelled, mesh: Mesh, how: Estimator) -> Shared:
    """Class means and within-class covariance of rows [M, n].

    Raises:
      ValueError: the covariance is singular.
    """
    means = np.stack([mean_of(rows, index) for index in found.rows])
    counts = np.array([len(index) for index in found.rows])
    mean = counts @ means / counts.sum()
    one = _within(rows, found, means, mean, mesh, how)
    points = np.asarray(_whitened(one.gaussian, (means - mean).astype(float_type())))
    return Shared(one.gaussian, points, np.asarray(one.amount, float_type()))


def _within(
    rows: np.ndarray,
    found: Labelled,
    means: np.ndarray,
    mean: np.ndarray,
    mesh: Mesh,
    how: Estimator,
) -> Fitted:
    what = "all classes together"
    if sum(map(len, found.rows)) <= rows.shape[1]:
        centred = [rows[index] - m for index, m in zip(found.rows, means, strict=True)]
        return from_centred(np.concatenate(centred).astype(float_type()), mean, mesh, how, what)
    numbers = np.zeros(len(rows), np.int32)
    for number, index in enumerate(found.rows):
        numbers[index] = number
    sums = moments(rows, mesh, means, numbers, index=_all(found, len(rows)))
    return from_moments(sums, mean, how, what)


def nearest_class(state: Shared, rows: Array) -> jax.Array:
    """min_c of the squared distance of rows [N, n] to class means: [N]."""
    check_width(rows, len(state.gaussian.mean))
    points = jnp.asarray(state.points)
    whitened = _whitened(state.gaussian, rows - state.gaussian.mean)
    products = jnp.matmul(whitened, points.T, precision=lax.Precision.HIGHEST)
    # Expanded squares cancel: good enough to tell which mean is nearest, not how near.
    nearest = jnp.argmin(jnp.sum(points**2, axis=1) - 2 * products, axis=1)
    return jnp.sum((whitened - points[nearest]) ** 2, axis=1)


def _whitened(gaussian: Gaussian, offsets: Array) -> jax.Array:
    return jnp.concatenate(whiten(gaussian, offsets), axis=1)


def _shared_facts(state: Shared, how: Estimator) -> dict[str, Any]:
    return {
        "classes": len(state.points),
        "divisor": "N",
        "shrinkage": how.shrinkage,
        "shrinkage_amount": float(state.amount),
        "representation": "full" if isinstance(state.gaussian, Whitened) else "low_rank",
    }


def _all(found: Labelled, total: int) -> np.ndarray | None:
    """The rows that have a label, in their order; None = all have."""
    index = np.sort(np.concatenate(found.rows))
    return None if len(index) == total else index


def _names(found: Labelled) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in found.classes)
