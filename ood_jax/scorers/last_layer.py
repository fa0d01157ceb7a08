"""Scores made of the last linear layer and its inputs: ReAct, GradNorm, DICE, NCI, fDBD, SHE.

Logits are inputs @ kernel + bias at float32, whatever the network computes in. "Predicted" is the
argmax of these logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.linear import Linear, inputs, linear, logits
from ood_jax.scorers.patterns import Patterns, stored_patterns
from ood_jax.scorers.percentile import percentile
from ood_jax.types import Array, Features, Scorer

EPS = 1e-12  # least norm that is divided by
SHE_METRICS = ("inner_product", "euclidean", "cosine")


class React(struct.PyTreeNode):
    """threshold: float32 [], where inputs are cut off."""

    layer: Linear
    threshold: Array


def react(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Energy of the logits of min(inputs, threshold) (Sun et al. 2021, ReAct).

    The threshold is a percentile of all inputs on the train set; OpenOOD takes its validation set.

    Raises:
      ValueError: a percentile that is not between 0 and 100.
    """
    percent = _percent(config, "react_percentile")

    def fit(features: Features) -> React:
        layer, rows = linear(features, "react")
        return React(layer, np.asarray(percentile(rows, percent), np.float32))

    def score(state: React, features: Features) -> jax.Array:
        return cut_off_energy(state, inputs(state.layer, features))

    return Scorer(fit, score, ("last_layer",), facts=lambda s: {"threshold": float(s.threshold)})


def cut_off_energy(state: React, rows: Array) -> jax.Array:
    """-logsumexp of the logits of rows [N, D] cut off at the threshold: [N]."""
    cut = jnp.minimum(rows, state.threshold)
    return -jax.nn.logsumexp(logits(state.layer, cut), axis=1)


def gradnorm(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-L1 norm of the gradient of -sum_c log p_c by the kernel (Huang et al. 2021, GradNorm).

    In closed form: sum_c |K p_c - 1| * |inputs|_1.
    """

    def score(state: Linear, features: Features) -> jax.Array:
        rows = inputs(state, features)
        p = jax.nn.softmax(logits(state, rows), axis=1)
        slopes = jnp.sum(jnp.abs(p.shape[1] * p - 1), axis=1)
        return -slopes * jnp.sum(jnp.abs(rows), axis=1)

    return Scorer(lambda features: linear(features, "gradnorm")[0], score, ("last_layer",))


def dice(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Energy with the weights that contribute most (Sun and Li 2022, DICE).

    A weight contributes itself times the train mean of its input; those at or below the
    config.dice_percentile of all contributions are 0.

    Raises:
      ValueError: a percentile that is not between 0 and 100.
    """
    percent = _percent(config, "dice_percentile")

    def fit(features: Features) -> Linear:
        layer, rows = linear(features, "dice")
        contribution = rows.mean(0, dtype=np.float64).astype(np.float32)[:, None] * layer.kernel
        kept = contribution > np.percentile(contribution, percent)
        return layer.replace(kernel=np.where(kept, layer.kernel, np.float32(0)))

    def score(state: Linear, features: Features) -> jax.Array:
        return -jax.nn.logsumexp(logits(state, inputs(state, features)), axis=1)

    def facts(state: Linear) -> dict[str, Any]:
        return {"weights_kept": float(np.mean(np.asarray(state.kernel) != 0))}

    return Scorer(fit, score, ("last_layer",), facts=facts)


class Centred(struct.PyTreeNode):
    """mean: of the inputs on the train set, float32 [D]."""

    layer: Linear
    mean: Array


def _centred(features: Features, name: str) -> Centred:
    layer, rows = linear(features, name)
    return Centred(layer, rows.mean(0, dtype=np.float64).astype(np.float32))


def nci(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-(<w_predicted, x - mean> / |x - mean| + alpha |x|_1) (Liu and Qin 2025, NCI).

    alpha = config.nci_alpha.
    """
    alpha = config.nci_alpha

    def score(state: Centred, features: Features) -> jax.Array:
        rows = inputs(state.layer, features)
        predicted = jnp.argmax(logits(state.layer, rows), axis=1)
        offsets = rows - state.mean
        along = jnp.sum(jnp.asarray(state.layer.kernel).T[predicted] * offsets, axis=1)
        near = along / jnp.maximum(_norm(offsets), EPS)
        return -near - alpha * jnp.sum(jnp.abs(rows), axis=1)

    return Scorer(lambda features: _centred(features, "nci"), score, ("last_layer",))


def fdbd(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-sum of the distances to the decision boundaries of the predicted class, over |x - mean|.

    Liu and Qin 2024 (fDBD): sum_c |l_predicted - l_c| / |w_predicted - w_c|; their mean over c in
    the paper, the sum here as in OpenOOD.
    """

    def score(state: Centred, features: Features) -> jax.Array:
        rows = inputs(state.layer, features)
        found = logits(state.layer, rows)
        predicted = jnp.argmax(found, axis=1)
        gaps = jnp.max(found, axis=1, keepdims=True) - found
        distances = jnp.sum(gaps / _apart(jnp.asarray(state.layer.kernel), predicted), axis=1)
        return -distances / jnp.maximum(_norm(rows - state.mean), EPS)

    return Scorer(lambda features: _centred(features, "fdbd"), score, ("last_layer",))


def _apart(kernel: jax.Array, predicted: Array) -> jax.Array:
    """|w_predicted - w_c|, [N, K], without a K x K matrix; 1 where c is predicted."""
    weights = (kernel - jnp.mean(kernel, axis=1, keepdims=True)).T  # shorter, so rounded less
    squares = jnp.sum(weights**2, axis=1)
    products = jnp.matmul(weights[predicted], weights.T, precision=lax.Precision.HIGHEST)
    apart = squares[predicted][:, None] + squares - 2 * products
    least = jnp.finfo(kernel.dtype).eps * jnp.max(squares)
    itself = jnp.arange(len(weights)) == predicted[:, None]
    return jnp.where(itself, 1.0, jnp.sqrt(jnp.maximum(apart, least)))


def she(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-similarity to the stored pattern of the predicted class (Zhang et al. 2023, SHE).

    A pattern is the mean of the class's train images that are predicted rightly. config.she_metric:
    inner_product (the paper's), euclidean or cosine (OpenOOD's). Where OpenOOD's pattern is NaN, a
    class without such an image, it is the mean of the class's images, or of all where it has none.

    Raises:
      ValueError: no such metric.
    """
    metric = config.she_metric
    if metric not in SHE_METRICS:
        raise ValueError(f"score.she_metric = {metric!r}: use {', '.join(SHE_METRICS)}")

    def score(state: Patterns, features: Features) -> jax.Array:
        rows = inputs(state.layer, features)
        predicted = jnp.argmax(logits(state.layer, rows), axis=1)
        pattern = jnp.asarray(state.patterns)[predicted]
        if metric == "euclidean":
            return _norm(rows - pattern)
        products = jnp.sum(rows * pattern, axis=1)
        if metric == "inner_product":
            return -products
        return -products / jnp.maximum(_norm(rows) * _norm(pattern), EPS)

    def facts(state: Patterns) -> dict[str, Any]:
        return {"metric": metric, "classes_never_right": int(state.missing)}

    fit = lambda features: stored_patterns(features, mesh)  # noqa: E731
    return Scorer(fit, score, ("last_layer", "labels"), facts=facts)


def _norm(rows: Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(rows * rows, axis=1))


def _percent(config: ConfigDict, key: str) -> float:
    if not 0 < config[key] < 100:
        raise ValueError(f"score.{key} = {config[key]}: use a number above 0 and below 100")
    return config[key]
