"""Norms, spread and directions of contrastive features over random views of a set's images.

Le-Gia & Ahn (METHODS: section 3), section III and appendices B and C. E_t is the mean over the
clean image and the random views of `scorers.views`, as in the norm scorers, so s_mu is theirs.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax import metrics, sharding
from ood_jax.losses.contrastive import alignment, uniformity
from ood_jax.scorers import views
from ood_jax.types import Array, Extra, Features, Forward

BLOCK = 1024  # images compared with all others at once
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
SCORES = ("norm", "norm_mean")  # as ood_jax.scorers calls s_l2 and s_mu


class PerImage(NamedTuple):
    """One set at one checkpoint, N images whose projections are P wide.

    norm: |f(x)|, float64 [N]. squared_mean, squared_sigma, squared_sigma_v: float64 [N], the terms
    of Eq. 15. pair: float32 [N, 2, P], f of two random views.
    """

    norm: np.ndarray
    squared_mean: np.ndarray
    squared_sigma: np.ndarray
    squared_sigma_v: np.ndarray
    pair: np.ndarray


@lru_cache
def extra(drawn: views.RandomViews, turns: tuple[int, ...] = (0,)) -> Extra:
    """What `per_image` reads of an image. drawn, turns: as `views.over_views`; A >= 2."""

    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        f = views.over_views(forward, images, index, drawn, turns)
        return {
            "squared_norm": views.squared_norm(f[0]),
            "terms": terms(f),
            "pair": jnp.moveaxis(f[1:3], 0, 1),
        }

    return Extra(f"norm facts {drawn} {turns}", compute)


def terms(f: Array) -> jax.Array:
    """(mu^2, sigma^2, sigma_V^2) of f over V views of N images: [V, N, P] -> float32 [N, 3].

    Theorem III.1: mu = |E_t f|, sigma^2 the variance of f along E_t f, sigma_V^2 the trace of its
    covariance across. Their sum is E_t |f|^2 (Eq. 15), so variances have divisor V. An image with
    E_t f = 0 has no direction: its sigma is 0.
    """
    mean = f.mean(0)
    squared_mean = views.squared_norm(mean)
    tiny = squared_mean == 0
    direction = mean / jnp.sqrt(jnp.where(tiny, 1.0, squared_mean))[:, None]
    centred = f - mean  # before any square: where sigma is small, E|f|^2 - mu^2 is but rounding
    along = jnp.sum(centred * direction, -1)
    across = centred - along[..., None] * direction
    return jnp.stack([squared_mean, (along**2).mean(0), views.squared_norm(across).mean(0)], -1)


def per_image(found: Features) -> PerImage:
    """What `extra` left in extracted features."""
    held: dict[str, Any] = found.extra or {}
    mean, sigma, sigma_v = np.asarray(held["terms"], np.float64).T
    norm = np.sqrt(np.asarray(held["squared_norm"], np.float64))
    return PerImage(norm, mean, sigma, sigma_v, np.asarray(held["pair"]))


def numbers(of: PerImage) -> dict[str, Any]:
    """A set's numbers; None where one is not finite, as after a run has diverged.

    norm: mean and quantiles of |f(x)|. mu, sigma, sigma_v, mu_over_sigma_v: means over images
    (Fig. 2). alignment, uniformity: Eqs. 12 and 13, of the two random views and of the first.
    """
    mu, sigma, sigma_v = (np.sqrt(x) for x in of[1:4])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = mu / sigma_v
        quantiles = np.quantile(of.norm, list(QUANTILES.values()))
    return {
        "norm": {"mean": _number(of.norm.mean())}
        | {name: _number(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        "mu": _number(mu.mean()),
        "sigma": _number(sigma.mean()),
        "sigma_v": _number(sigma_v.mean()),
        "mu_over_sigma_v": _number(ratio.mean()),
        "alignment": _number(_alignment(of.pair)),
        "uniformity": _number(_uniformity()(of.pair[:, 0])),
    }


def aurocs(inside: PerImage, outside: PerImage) -> dict[str, float | None]:
    """AUROC of s_l2 and s_mu, large = in-distribution, of test images against an OOD set's."""
    pairs = (inside.norm, outside.norm), (inside.squared_mean, outside.squared_mean)
    return {
        name: metrics.auroc(-own, -others) if np.isfinite([own.sum(), others.sum()]).all() else None
        for name, (own, others) in zip(SCORES, pairs, strict=True)
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


_alignment = jax.jit(lambda pair: alignment(pair).mean())


@lru_cache
def _uniformity() -> Any:
    """Its exponent is the 1 of Eq. 13; made when asked for, since it looks for a device."""
    return jax.jit(partial(uniformity, rows=sharding.each_row(sharding.local_mesh(), BLOCK)))
