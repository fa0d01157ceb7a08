"""Gram matrices: does each stage of the network look as it does for train images of one class?"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers.cosine import check_features
from ood_jax.types import Array, Extra, Features, Forward, Scorer
from ood_jax.views.crops import evaluation_view

EPS = 1e-6  # added to what is divided by, as OpenOOD has it
HOLD_OUT = 10  # every tenth train image scales the stages, and sets no bounds
BLOCK = 1024  # held-out images whose deviations are computed at once


class State(NamedTuple):
    """Bounds of W values by predicted class; R of the K classes were predicted for a train image.

    row: int32 [K], of the class in low and high; R = never predicted: the bounds of all images.
    low, high: float32 [R + 1, W]. weight: float32 [W], 1 / mean deviation of the value's stage.
    """

    row: Array
    low: Array
    high: Array
    weight: Array


def gram(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Gram matrices (Sastry & Oore 2020) of Outputs.stages; config: gram_powers.

    score = sum_l delta_l / E[delta_l] / max softmax: delta_l sums, over the powers and channels of
    stage l, how far `row_sums` lie outside their range among train images of the same predicted
    class, relative to the bound; E over every tenth train image, which sets no bounds. OpenOOD
    groups train images by label instead, draws the tenth at random, and takes every ReLU and
    convolution for a stage.

    Memory: 4 bytes x powers x channels of all stages an image: 19 KB for ResNet-18 of width 64
    and 5 powers, so 960 MB for 50,000 train images; the state has twice 19 KB a predicted class.

    Raises:
      ValueError: powers that are not whole numbers from 1 up; when extracting, a network without
        logits or stages; when fitted, fewer than ten train images, values that are not finite.
    """
    powers = tuple(config.gram_powers)
    if not powers or any(p != int(p) or p < 1 for p in powers):
        raise ValueError(f"score.gram_powers = {powers}: use whole numbers from 1 up")

    def facts(state: State) -> dict[str, int]:
        return {"predicted_classes": len(state.low) - 1, "classes": len(state.row)}

    extra = _extra(tuple(int(p) for p in powers))
    return Scorer(_fit, score, needs=("logits", "gram"), facts=facts, extra=extra)


def row_sums(activations: Array, powers: tuple[int, ...]) -> jax.Array:
    """Sums of the rows of the Gram matrix of each power p: float32 [B, powers, C].

    sign(s)|s|^(1/p) of s = sum_j (F^p F^pT)_ij, F [C, positions]. As in OpenOOD's
    code: the sum first, then the root, on every entry; the paper's text takes the root of each
    entry of the upper triangle. So no C x C matrix is formed: F^p times the sum of its rows.

    activations: [B, ..., C]. powers: whole numbers.
    """
    flat = activations.astype(jnp.float32).reshape(activations.shape[0], -1, activations.shape[-1])
    # Scaled to at most 1, which the root undoes: high powers overflow otherwise.
    scale = jnp.maximum(jnp.abs(flat).max((1, 2)), jnp.finfo(jnp.float32).tiny)[:, None]

    def one(power: int) -> jax.Array:
        high = (flat / scale[..., None]) ** power
        sums = jnp.einsum("bnc,bn->bc", high, high.sum(-1), precision="highest")
        return jnp.sign(sums) * jnp.abs(sums) ** (1 / power) * scale**2

    return jnp.stack([one(power) for power in powers], 1)


def score(state: State, features: Features) -> jax.Array:
    """Total deviation over confidence, float32 [N]; see `gram`."""
    logits, values = jnp.asarray(features.logits), (features.extra or {})["gram"]
    row = state.row[logits.argmax(-1)]
    outside = _outside(state.low[row], state.high[row], values)
    total = jnp.matmul(outside, state.weight, precision="highest")
    return total / jax.nn.softmax(logits).max(-1)


def _outside(low: Array, high: Array, values: Array) -> jax.Array:
    """How far each value is outside [low, high], relative to the bound it passed."""
    below = jax.nn.relu(low - values) / jnp.abs(low + EPS)
    return below + jax.nn.relu(values - high) / jnp.abs(high + EPS)


def _fit(features: Features) -> State:
    extra = features.extra or {}
    values, widths = check_features(extra["gram"], "gram"), np.asarray(extra["gram_widths"])[0]
    logits = check_features(features.logits, "logit")  # type: ignore[arg-type]
    if len(values) < HOLD_OUT:
        raise ValueError(f"gram needs {HOLD_OUT} train images or more, not {len(values)}")
    held_out = np.arange(len(values)) % HOLD_OUT == HOLD_OUT - 1
    predicted = logits.argmax(1)
    row, low, high = _bounds(values, predicted, ~held_out, logits.shape[1])
    total = np.zeros(values.shape[1])
    for rows in _blocks(np.flatnonzero(held_out)):
        bounds = row[predicted[rows]]
        total += np.asarray(_outside(low[bounds], high[bounds], values[rows]), np.float64).sum(0)
    stage = np.repeat(np.arange(len(widths)), widths)
    means = np.bincount(stage, total) / held_out.sum()
    # A stage that no held-out image deviates in has no unit of its own.
    weight = 1 / np.where(means > 0, means, 1.0)
    return State(row, low, high, weight[stage].astype(np.float32))


def _bounds(
    values: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State's row, low and high, of the images that count."""
    found = np.unique(predicted[counts])
    row = np.full(classes, len(found), np.int32)
    row[found] = np.arange(len(found))
    low, high = (np.empty((len(found) + 1, values.shape[1]), np.float32) for _ in range(2))
    for i, c in enumerate(found):  # one class at a time is copied
        group = values[counts & (predicted == c)]
        low[i], high[i] = group.min(0), group.max(0)
    low[-1], high[-1] = low[:-1].min(0), high[:-1].max(0)
    return row, low, high


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


@lru_cache  # one Extra, and one compilation, for the same powers
def _extra(powers: tuple[int, ...]) -> Extra:
    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        inputs = evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)
        stages = forward.apply(inputs).stages
        if not stages:
            raise ValueError("stages: use a network that gives the activations of its stages")
        count = images.shape[0]
        sums = [row_sums(stage, powers).reshape(count, -1) for stage in stages]
        widths = jnp.array([s.shape[1] for s in sums], jnp.int32)
        return {
            "gram": jnp.concatenate(sums, 1),
            "gram_widths": jnp.broadcast_to(widths, (count, len(sums))),
        }

    return Extra(f"gram {powers}", compute)
