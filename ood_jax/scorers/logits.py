"""Scores that read logits alone: MSP, max logit, energy, GEN, KL matching, L1 discrepancy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.cosine import check_features
from ood_jax.types import Array, Features, Scorer

LEAST = float(np.finfo(np.float32).tiny)  # a probability below it is float32's zero
BLOCK = 4096  # rows whose probabilities are in memory at once


def msp(config: ConfigDict, mesh: Mesh) -> Scorer:
    """1 - max softmax (Hendrycks and Gimpel 2017), as the sum of the other probabilities.

    So that images of which the network is surer than float32 can say still have an order.
    """
    return _of_logits("msp", lambda logits: jnp.exp(_log_rest(logits)))


def max_logit(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-max logit (Hendrycks et al. 2022)."""
    return _of_logits("max_logit", lambda logits: -jnp.max(logits, axis=1))


def energy(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-T logsumexp(logits / T) (Liu et al. 2020, Eq. 4); T = config.energy_temperature.

    Raises:
      ValueError: a temperature that is not above 0.
    """
    t = config.energy_temperature
    if not 0 < t < np.inf:
        raise ValueError(f"score.energy_temperature = {t}: use a number above 0")
    return _of_logits("energy", lambda logits: -t * jax.nn.logsumexp(logits / t, axis=1))


def gen(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Generalised entropy of the largest probabilities (Liu et al. 2023, GEN, Eq. 3).

    sum p^g (1 - p)^g over the config.gen_top largest, g = config.gen_gamma.

    Raises:
      ValueError: an exponent outside (0, 1), no probability is to count.
    """
    gamma, top = config.gen_gamma, config.gen_top
    if not 0 < gamma < 1:
        raise ValueError(f"score.gen_gamma = {gamma}: use a number above 0 and below 1")
    if top < 1:
        raise ValueError(f"score.gen_top = {top}: use 1 or more")
    return _of_logits("gen", lambda logits: generalised_entropy(logits, gamma=gamma, top=top))


def generalised_entropy(logits: Array, *, gamma: float, top: int) -> jax.Array:
    """sum over the `top` largest probabilities of p^gamma (1 - p)^gamma: [N, K] -> [N].

    In logarithms, and 1 - p of the largest as the sum of the others: near p = 1 the difference is
    rounding noise, which a small gamma blows up.
    """
    log_p = jax.nn.log_softmax(logits, axis=1)
    log_p, _ = lax.top_k(log_p, min(top, logits.shape[1]))
    others = jnp.log1p(-jnp.exp(log_p[:, 1:]))  # each at most 1/2
    log_q = jnp.concatenate([_log_rest(logits)[:, None], others], axis=1)
    return jnp.sum(jnp.exp(gamma * (log_p + log_q)), axis=1)


class Matching(struct.PyTreeNode):
    """log of the mean probabilities of the images predicted as a class: [classes predicted, K]."""

    log_mean: Array


def klm(config: ConfigDict, mesh: Mesh) -> Scorer:
    """min_c KL(p || mean softmax of class c) (Hendrycks et al. 2022, KL matching).

    Classes are what the network predicts, not labels. OpenOOD takes the means from its validation
    set, here from the train set; a class that no image is predicted as matches nothing.
    """

    def fit(features: Features) -> Matching:
        return Matching(log_mean_probabilities(checked(features.logits, "klm")))

    def score(state: Matching, features: Features) -> jax.Array:
        return least_divergence(state, _there(features.logits, "klm"))

    def facts(state: Matching) -> dict[str, Any]:
        return {"classes_predicted": len(state.log_mean)}

    return Scorer(fit, score, ("logits",), facts=facts)


def log_mean_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits [M, K] -> log of the mean softmax of the rows of each argmax, [predicted, K]."""
    predicted = logits.argmax(1)
    means = []
    for number in np.unique(predicted):
        rows = np.flatnonzero(predicted == number)
        total = np.zeros(logits.shape[1])
        for start in range(0, len(rows), BLOCK):
            block = logits[rows[start : start + BLOCK]]
            shares = np.exp(block - block.max(1, keepdims=True))
            total += (shares / shares.sum(1, keepdims=True)).sum(0, dtype=np.float64)
        means.append(total / len(rows))
    return np.log(np.maximum(np.stack(means), LEAST)).astype(np.float32)


def least_divergence(state: Matching, logits: Array) -> jax.Array:
    """min_c KL(softmax(logits) || c): [N, K] -> [N]."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    p = jnp.exp(log_p)
    log_mean = jnp.asarray(state.log_mean)
    cross = jnp.matmul(p, log_mean.T, precision=lax.Precision.HIGHEST)
    nearest = log_mean[jnp.argmax(cross, axis=1)]
    # Every term is at least 0, so that a small divergence is not the difference of large numbers.
    return jnp.sum(p * (log_p - nearest) - p + jnp.exp(nearest), axis=1)


def l1_discrepancy(config: ConfigDict, mesh: Mesh) -> Scorer:
    """sum_k |p1 - p2| of two classifiers on one trunk, in [0, 2] (Yu and Aizawa 2019, MCD)."""

    def fit(features: Features) -> dict[str, Any]:
        first = checked(features.logits, "l1_discrepancy")
        if features.second_logits is None:
            raise ValueError("l1_discrepancy needs a second classifier on the same features (MCD)")
        check_features(features.second_logits, "train", width=first.shape[1])
        return {}

    def score(state: dict[str, Any], features: Features) -> jax.Array:
        first = jax.nn.softmax(_there(features.logits, "l1_discrepancy"), axis=1)
        second = jax.nn.softmax(_there(features.second_logits, "l1_discrepancy"), axis=1)
        return jnp.sum(jnp.abs(first - second), axis=1)

    return Scorer(fit, score, ("logits", "second_logits"))


def checked(logits: Array | None, name: str) -> np.ndarray:
    """Logits of a train set as float32 [M, K].

    Raises:
      ValueError: there are none, they are not [M, K] or not finite.
    """
    return check_features(_there(logits, name), "train")


def _there(logits: Array | None, name: str) -> Array:
    if logits is None:
        raise ValueError(f"{name} needs logits, which this network does not have")
    return logits


def _of_logits(name: str, function: Callable[[Array], jax.Array]) -> Scorer:
    """A score that fits nothing."""

    def fit(features: Features) -> dict[str, Any]:
        _there(features.logits, name)
        return {}

    def score(state: dict[str, Any], features: Features) -> jax.Array:
        return function(jnp.asarray(_there(features.logits, name)))

    return Scorer(fit, score, ("logits",))


def _log_rest(logits: Array) -> jax.Array:
    """log(1 - largest probability): [N, K] -> [N]."""
    largest = jnp.argmax(logits, axis=1, keepdims=True)
    is_largest = jnp.arange(logits.shape[1]) == largest
    others = jax.nn.logsumexp(jnp.where(is_largest, -jnp.inf, logits), axis=1)
    return others - jax.nn.logsumexp(logits, axis=1)
