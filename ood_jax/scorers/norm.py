"""Scores by the norm of the contrastive feature f: in-distribution images have larger ones.

f is the projection head's output, not normalised, where the network has one; else the feature that
score.feature names.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers import bank, views
from ood_jax.scorers.cosine import check_features
from ood_jax.scorers.stream import streamed as stream
from ood_jax.types import Array, Features, Scorer

EQUAL = 1e-4  # spread of the norms, relative to the largest, that counts as none


def norm(config: ConfigDict, mesh: Mesh) -> Scorer:
    """score = -|f(x)|^2 (Le-Gia & Ahn, Eq. 9, s_l2); config: feature.

    Raises:
      ValueError: when fitted, features that are not finite, or all of one norm.
    """

    def score(state: dict[str, Any], features: Features) -> jax.Array:
        return -views.squared_norm(_extra(features, "embedding"))

    return Scorer(_fit, score, needs=("embedding",), extra=views.embedding(config))


def norm_ensemble(config: ConfigDict, mesh: Mesh) -> Scorer:
    """score = -E_t |f(t(x))|^2 (Le-Gia & Ahn, Eq. 15, s_l2-ens); config: feature, augmentations.

    E_t over the clean image and the random views, as the released code.

    Raises:
      ValueError: as `norm`; or no augmentations.
    """
    return _over_views(config, 0)


def norm_mean(config: ConfigDict, mesh: Mesh) -> Scorer:
    """score = -|E_t f(t(x))|^2 (Le-Gia & Ahn, Eq. 10, s_mu); config: feature, augmentations.

    E_t as in `norm_ensemble`. The released code takes the root, which is the same order.

    Raises:
      ValueError: as `norm_ensemble`.
    """
    return _over_views(config, 1)


def cosine_norm_mean(config: ConfigDict, mesh: Mesh) -> Scorer:
    """score = -(max_m cos(f(x), f(x_m)) + |E_t f(t(x))|^2).

    Config: as `norm_mean`, block, bank_memory.
    Le-Gia & Ahn, appendix C and Table VI, "sim + s_mu": the sum, unweighted. Which f the cosine is
    of they do not say and have not released; here that of the clean images.

    Raises:
      ValueError: as `norm_ensemble`.
    """
    nearest = stream(
        bank.TopK(1), block=config.block, memory=config.bank_memory, mesh=mesh, finish=_cosines
    )

    def fit(features: Features) -> bank.Bank:
        _fit(features)
        return bank.unit_bank(_extra(features, "embedding"))

    def score(rows: bank.Bank, features: Features) -> jax.Array:
        found = bank.top_k(rows, _extra(features, "embedding"), k=1, block=config.block)
        return -(_cosines(found) + _extra(features, "norms")[:, 1])

    def streamed(rows: bank.Bank, features: Features) -> np.ndarray:
        cosines = nearest(rows, _extra(features, "embedding"))
        return -(cosines + np.asarray(_extra(features, "norms"))[:, 1])

    needs = ("embedding", "norms")
    return Scorer(fit, score, needs, streamed=streamed, extra=views.norms(config))


def _cosines(found: tuple[Array, Array]) -> Any:
    """What `bank.TopK(1)` finds -> cosine of the nearest, [N]."""
    return found[0][:, 0]


def _over_views(config: ConfigDict, column: int) -> Scorer:
    def score(state: dict[str, Any], features: Features) -> Array:
        return -_extra(features, "norms")[:, column]

    return Scorer(_fit, score, needs=("norms",), extra=views.norms(config))


def _fit(features: Features) -> dict[str, Any]:
    """Nothing is learnt; refuses what has no norms to compare."""
    rows = check_features(_extra(features, "embedding"), "train")
    lengths = np.sqrt(np.sum(rows * rows, axis=1))
    if len(rows) > 1 and np.ptp(lengths) <= EQUAL * lengths.max():
        raise ValueError(
            f"all {len(rows)} train images have norm {lengths.max():.4g}, so norms tell nothing:"
            " the head normalises its output (head.name = dino does), or is constant"
        )
    return {}


def _extra(features: Features, name: str) -> Array:
    return (features.extra or {})[name]
