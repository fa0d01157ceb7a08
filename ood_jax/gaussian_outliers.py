"""Outliers from the tails of Gaussians of embeddings (VOS, Du et al. 2022, section 3.1)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.banks import banks, check_embeddings
from ood_jax.mine import Mined
from ood_jax.scorers.covariance import moments
from ood_jax.scorers.rows import mean_of
from ood_jax.types import Array


class GaussianSettings(NamedTuple):
    """How the tails are sampled; the defaults are the released code's numbers.

    draws: of each class's Gaussian in a round. keep: the least likely of them. rounds: the code has
    one in each step of its training. ridge: added to the covariance's diagonal. class_wise: means
    of each class, and the covariance about them; or one mean and covariance of all.
    """

    draws: int = 10_000
    keep: int = 1
    rounds: int = 1
    ridge: float = 1e-4
    class_wise: bool = True


def gaussian_outliers(
    embeddings: Array,
    labels: Array | None,
    *,
    settings: GaussianSettings,
    key: Array,
    mesh: Mesh | None = None,
) -> Mined:
    """rounds * keep outliers of each class: the least likely draws of N(mean_c, covariance).

    The covariance is shared: mean over all rows of (z - mean_c)(z - mean_c)^T, plus the ridge. A
    draw mean + L e, with L the covariance's Cholesky factor and e standard normal, has Mahalanobis
    distance |e|, so the least likely are those with the largest |e|. Embeddings are taken as they
    are, not normalised, and so are the outliers.

    Args:
      embeddings: [N, D]. labels: int [N], -1 = none, left out class by class; None unless
        class_wise. key: all random numbers come from it. mesh: sums over rows; None = this
        process's first device.

    Returns:
      As `mine`'s, with source -1, since no row is moved, and the squared Mahalanobis distances;
      the least likely of each round first.

    Raises:
      ValueError: settings that make no sense, labels missing; embeddings that are not finite, of
        norm 0, or all the same.
    """
    check_gaussian(settings)
    rows = check_embeddings(embeddings)
    found = banks(rows, labels, class_wise=settings.class_wise, least=2, what="the Gaussian")
    means = np.stack([mean_of(rows, members) for _, members in found])
    numbers = np.zeros(len(rows), np.int32)
    for number, (_, members) in enumerate(found):
        numbers[members] = number
    used = np.sort(np.concatenate([members for _, members in found]))
    mesh = sharding.data_parallel(mesh) if mesh else sharding.local_mesh()
    sums = moments(rows, mesh, means, numbers, used)
    covariance = sums.scatter / sums.images + settings.ridge * np.eye(rows.shape[1])
    factor = np.linalg.cholesky(covariance).astype(np.float32)
    parts = []
    for mean, (label, _) in zip(means, found, strict=True):
        own = jax.random.fold_in(key, label + 1)
        offsets, distances = jax.device_get(_tails(own, factor, settings=settings))
        named = np.full(len(offsets), label, np.int32)
        parts.append((offsets + mean.astype(np.float32), np.full_like(named, -1), distances, named))
    return Mined(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


@partial(jax.jit, static_argnames="settings")
def _tails(key: Array, factor: Array, *, settings: GaussianSettings) -> tuple[Array, Array]:
    """Draws less their mean [rounds * keep, D], and |e|^2; one round's are held at once."""

    def one_round(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        draws = (settings.draws, factor.shape[0])
        standard = jax.random.normal(jax.random.fold_in(key, number), draws, jnp.float32)
        squares, places = lax.top_k(jnp.sum(standard * standard, 1), settings.keep)
        kept = jnp.matmul(standard[places], factor.T, precision=lax.Precision.HIGHEST)
        return kept, squares

    offsets, squares = lax.map(one_round, jnp.arange(settings.rounds))
    return offsets.reshape(-1, factor.shape[0]), squares.reshape(-1)


def check_gaussian(settings: GaussianSettings) -> None:
    for name in ("draws", "keep", "rounds"):
        if getattr(settings, name) < 1:
            raise ValueError(f"method.{name} = {getattr(settings, name)}: use 1 or more")
    if settings.keep > settings.draws:
        raise ValueError(
            f"method.keep = {settings.keep} of method.draws = {settings.draws}: keep fewer"
        )
    if not 0 < settings.ridge < np.inf:
        raise ValueError(f"method.ridge = {settings.ridge}: use a number above 0")
