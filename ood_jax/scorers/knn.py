"""Scores and votes of the nearest train features by cosine: exp-cosine and weighted kNN.

Everything streams over blocks of the bank and of the test set, so that memory never grows with
test x bank: one block of similarities is all that exists at a time.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from ood_jax.scorers.cosine import (
    bank_block,
    check_features,
    check_numbers,
    check_pair,
    pick,
    row_blocks,
    unit,
)
from ood_jax.types import Array, Features, Scorer

# exp((cos - 1) / t + HEADROOM) neither overflows in the sum of 1e9 rows (e^81 < e^88.7) nor
# underflows for t >= FIXED: cos <= 1 is all the maximum that a stable sum needs.
HEADROOM = 60.0
FIXED = 2.0 / (HEADROOM + 80.0)


def build(config: ConfigDict) -> Scorer:
    """The exp-cosine scorer of `config.score`: reads feature, temperature and block.

    score = -log(1/M sum_m exp(cos(f, f_m) / t)): the logarithm of Rafiee et al. (2022), Eq. 6, with
    its sign: the same order of images, without its overflow. `score_train` leaves each image out.

    Raises:
      ValueError: a temperature or block that makes no sense; when fitted or scoring, what
        `exp_cosine` raises, or a feature that the network does not have.
    """
    check_numbers(config.temperature, config.block)

    def log_mean_exp(bank: jax.Array, test: jax.Array, leave_out: bool) -> np.ndarray:
        return _log_mean_exp(bank, test, config.temperature, config.block, leave_out)

    def score(bank: jax.Array, features: Features) -> np.ndarray:
        test = pick(features, config.feature)
        check_features(test, "test", width=bank.shape[1])
        return -log_mean_exp(bank, unit(test), False)

    def fit(features: Features) -> jax.Array:
        bank = pick(features, config.feature)
        check_features(bank, "bank")
        return unit(bank)

    return Scorer(fit, score, lambda bank: -log_mean_exp(bank, bank, True))


def exp_cosine(bank: Array, test: Array, *, temperature: float, block: int) -> np.ndarray:
    """log(1/M sum_m exp(cos(test_n, bank_m) / temperature)), higher = more in-distribution.

    Rafiee et al. (2022), Eq. 6, is minus the exponential of this.

    Args:
      bank: [M, D], of any norm; a zero vector has cosine 0 to everything. test: [N, D].
      temperature: above 0. block: bank rows compared at once.

    Returns:
      float32 [N].

    Raises:
      ValueError: an empty bank, widths that differ, features that are not finite, bad numbers.
    """
    bank, test = check_pair(bank, test, temperature, block)
    return _log_mean_exp(unit(bank), unit(test), temperature, block, False)


def exp_cosine_leave_one_out(bank: Array, *, temperature: float, block: int) -> np.ndarray:
    """`exp_cosine` of each bank row under the M - 1 others. bank: [M, D] -> float32 [M].

    Raises:
      ValueError: fewer than two rows, features that are not finite, bad numbers.
    """
    check_features(bank, "bank")
    check_numbers(temperature, block)
    units = unit(bank)
    return _log_mean_exp(units, units, temperature, block, True)


def nearest(
    bank: Array, test: Array, *, neighbours: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The exact nearest bank rows by cosine, nearest first.

    Args:
      bank: [M, D]. test: [N, D]. neighbours: k <= M. block: bank rows compared at once.

    Returns:
      cosines float32 [N, k], descending, and bank rows int32 [N, k].

    Raises:
      ValueError: more neighbours than the bank has, and as `exp_cosine`.
    """
    bank, test = check_pair(bank, test, 1.0, block)
    if not 1 <= neighbours <= len(bank):
        raise ValueError(
            f"score.knn = {neighbours}: the bank has {len(bank)} images; use 1 to {len(bank)}"
        )
    units, block = unit(bank), min(block, len(bank))
    found = [
        jax.device_get(_top(units, rows, neighbours=neighbours, block=block))
        for rows, _ in row_blocks(unit(test))
    ]
    cosines, rows = (np.concatenate(parts)[: len(test)] for parts in zip(*found, strict=True))
    return cosines, rows


def weighted_knn_log_votes(
    bank: Array,
    bank_labels: Array,
    test: Array,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
    block: int = 4096,
) -> np.ndarray:
    """Log of each class's votes: every neighbour votes exp(cos / temperature) for its label.

    DINO's eval_knn.py (Caron et al. 2021).

    Args:
      bank: [M, D]. bank_labels: int [M], 0 to classes - 1. test: [N, D].

    Returns:
      float64 [N, classes]; -inf = no vote.

    Raises:
      ValueError: a label out of range, and as `nearest`.
    """
    labels = np.asarray(bank_labels)
    if labels.shape != (len(bank),) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"bank labels {list(labels.shape)} from {labels.min()} to {labels.max()}:"
            f" give one of 0 to {classes - 1} for each of {len(bank)} rows"
        )
    check_numbers(temperature, block)
    cosines, rows = nearest(bank, test, neighbours=neighbours, block=block)
    cosines = cosines.astype(np.float64)
    weights = np.exp((cosines - cosines[:, :1]) / temperature)  # the nearest row's is 1
    cells = np.arange(len(cosines))[:, None] * classes + labels[rows]
    votes = np.bincount(cells.ravel(), weights.ravel(), len(cosines) * classes)
    with np.errstate(divide="ignore"):
        return np.log(votes.reshape(-1, classes)) + cosines[:, :1] / temperature


def knn_accuracy(
    bank: Array,
    bank_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    neighbours: int,
    temperature: float,
    block: int = 4096,
) -> float:
    """Share of test images whose class has the most votes; rows labelled -1 take no part.

    Raises:
      ValueError: no labelled row, and as `weighted_knn_log_votes`.
    """
    in_bank, in_test = np.asarray(bank_labels) >= 0, np.asarray(test_labels) >= 0
    if not (in_bank.any() and in_test.any()):
        raise ValueError("kNN accuracy needs labelled images in the bank and in the test set")
    bank_labels = np.asarray(bank_labels)[in_bank]
    votes = weighted_knn_log_votes(
        np.asarray(bank)[in_bank],
        bank_labels,
        np.asarray(test)[in_test],
        classes=int(bank_labels.max()) + 1,
        neighbours=neighbours,
        temperature=temperature,
        block=block,
    )
    return float(np.mean(votes.argmax(1) == np.asarray(test_labels)[in_test]))


def _log_mean_exp(
    bank: jax.Array, test: jax.Array, temperature: float, block: int, leave_out: bool
) -> np.ndarray:
    """Unit vectors -> [N]; leave_out: test row n is bank row n, and does not count for itself."""
    count = len(bank) - leave_out
    if count < 1:
        raise ValueError("leave-one-out needs two bank rows or more")
    sums = [
        _log_sum_exp(
            bank,
            rows,
            numbers if leave_out else None,
            temperature=float(temperature),
            block=min(block, len(bank)),
        )
        for rows, numbers in row_blocks(test)
    ]
    return np.concatenate(jax.device_get(sums))[: len(test)] - np.float32(math.log(count))


@partial(jax.jit, static_argnames=("temperature", "block"))
def _log_sum_exp(
    bank: Array, test: Array, own: Array | None, *, temperature: float, block: int
) -> jax.Array:
    """log sum_m exp(cos / t), unit vectors [M, D] and [n, D] -> [n]; own int32 [n]: not this m."""
    running = temperature < FIXED

    def step(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        top, total = carry
        cosines, numbers = bank_block(bank, test, i, block)
        if own is not None:
            cosines = jnp.where(numbers[:, None] == own, -jnp.inf, cosines)
        new = jnp.maximum(top, cosines.max(0)) if running else top
        terms = jnp.exp((cosines - new) / temperature + HEADROOM)
        return new, total * jnp.exp((top - new) / temperature) + terms.sum(0)

    # Rounding may take a cosine just above 1: HEADROOM has room for that.
    first = jnp.full(len(test), -2.0 if running else 1.0), jnp.zeros(len(test))
    top, total = lax.fori_loop(0, -(-len(bank) // block), step, first)
    return jnp.log(total) - HEADROOM + top / temperature


@partial(jax.jit, static_argnames=("neighbours", "block"))
def _top(bank: Array, test: Array, *, neighbours: int, block: int) -> tuple[jax.Array, jax.Array]:
    def step(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        cosines, numbers = bank_block(bank, test, i, block)
        numbers = jnp.broadcast_to(numbers, (len(test), block))
        joined = jnp.concatenate([carry[0], cosines.T], 1)
        best, places = lax.top_k(joined, neighbours)
        rows = jnp.take_along_axis(jnp.concatenate([carry[1], numbers], 1), places, 1)
        return best, rows

    empty = jnp.full((len(test), neighbours), -jnp.inf)
    first = empty, jnp.zeros((len(test), neighbours), jnp.int32)
    return lax.fori_loop(0, -(-len(bank) // block), step, first)
