"""SSD: Mahalanobis distance to clusters of self-supervised features, without labels."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.cosine import check_features, pick
from ood_jax.scorers.covariance import estimator
from ood_jax.scorers.gaussian import Mixture, fit_mixture, squared_distances
from ood_jax.scorers.mahalanobis import mixture_facts
from ood_jax.scorers.rows import check_width, float_type
from ood_jax.types import Array, Features, Scorer

EPS = 1e-10  # added to norms and deviations, as the released code does
CONSTANT = 1e-6  # a dimension whose deviation is below this share of the largest does not count


class Standard(struct.PyTreeNode):
    """Rows of norm 1 become (row - mean) * scale, [n] both; scale is 0 where they do not vary."""

    mean: Array
    scale: Array


class Clusters(struct.PyTreeNode):
    """What SSD is fitted to."""

    standard: Standard
    mixture: Mixture


def ssd(config: ConfigDict, mesh: Mesh) -> Scorer:
    """min over clusters of d^2, of normalised and standardised features (Sehwag et al. 2021).

    config.clusters k-means clusters (scikit-learn, seed 0) each get their mean and covariance; 1 is
    the whole set. As the released code: rows of norm 1, then every dimension standardised by the
    train set; shrinkage = none is its pseudo-inverse, ledoit_wolf its `shrunkcov`. Where the code
    lets a constant dimension explode, here it does not count.

    Raises:
      ValueError: no cluster is asked for; settings of the shrinkage that make no sense.
    """
    how = estimator(config, pseudo_inverse=True)
    if config.clusters < 1:
        raise ValueError(f"score.clusters = {config.clusters}: use 1 or more")

    def fit(features: Features) -> Clusters:
        rows = check_features(pick(features, config.feature), "train")
        rows, standard = standardised(rows)
        members = clustered(rows, config.clusters)
        names = tuple(f"cluster {number}" for number in range(len(members)))
        return Clusters(standard, fit_mixture(rows, members, names, mesh, how))

    def score(state: Clusters, features: Features) -> jax.Array:
        rows = standardise(state.standard, pick(features, config.feature))
        return nearest_cluster(state.mixture, rows)

    def facts(state: Clusters) -> dict[str, Any]:
        found = mixture_facts(state.mixture, how)
        constant = int((np.asarray(state.standard.scale) == 0).sum())
        return {"clusters": found.pop("classes"), "constant_dimensions": constant} | found

    return Scorer(fit, score, (config.feature,), facts=facts)


def nearest_cluster(mixture: Mixture, rows: Array) -> jax.Array:
    """min over Gaussians of the squared distance of rows [N, n]: [N]."""
    return jnp.min(squared_distances(mixture, rows)[0], axis=0)


def standardised(rows: np.ndarray) -> tuple[np.ndarray, Standard]:
    """Train rows [M, n] of norm 1, of mean 0 and deviation 1 in each dimension; and by what.

    Raises:
      ValueError: all rows point the same way.
    """
    kind = float_type()
    norms = np.sqrt(np.einsum("mn,mn->m", rows, rows, dtype=np.float64)) + EPS
    rows = rows / norms[:, None].astype(kind)
    mean = rows.mean(0, dtype=np.float64).astype(kind)
    rows -= mean
    deviation = np.sqrt(np.einsum("mn,mn->n", rows, rows, dtype=np.float64) / len(rows))
    if deviation.max() < CONSTANT:
        raise ValueError("ssd: all train features point the same way, so nothing can be told apart")
    varies = deviation > CONSTANT * deviation.max()
    scale = np.where(varies, 1 / (deviation + EPS), 0.0).astype(kind)
    rows *= scale
    return rows, Standard(mean, scale)


def standardise(standard: Standard, rows: Array) -> jax.Array:
    """Rows [N, n] as `standardised` made those of the train set."""
    check_width(rows, len(standard.mean))
    rows = jnp.asarray(rows, standard.mean.dtype)
    norms = jnp.sqrt(jnp.sum(rows * rows, axis=1, keepdims=True))
    return (rows / (norms + EPS) - standard.mean) * standard.scale


def clustered(rows: np.ndarray, clusters: int) -> tuple[np.ndarray, ...]:
    """k-means: the indices of each cluster's rows; five starts, as the released code's.

    Raises:
      ValueError: fewer rows that differ than clusters.
    """
    if clusters == 1:
        return (np.arange(len(rows)),)
    from sklearn.cluster import KMeans

    found = 0
    if clusters <= len(rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too few distinct rows: refused below
            numbers = KMeans(clusters, n_init=5, max_iter=100, random_state=0).fit_predict(rows)
        found = len(np.unique(numbers))
    if found < clusters:
        raise ValueError(
            f"score.clusters = {clusters}: the train set has too few different features for that"
            f" ({len(rows)} images)"
        )
    return tuple(np.flatnonzero(numbers == number) for number in range(clusters))
