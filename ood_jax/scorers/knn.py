"""Scores and votes of the nearest train features by cosine: exp-cosine, KNN and weighted kNN.

Everything streams over blocks of the bank and of the test set (bank.py, stream.py): memory grows
neither with test x bank nor with the bank.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.scorers.bank import Bank, LogSumExp, TopK, reduce, unit_bank
from ood_jax.scorers.cosine import check_features, check_numbers, pick
from ood_jax.scorers.stream import streamed
from ood_jax.types import Array, Features, Scorer

MEMORY = 1024**3  # bytes of a bank on a device, where no config says


def exp_cosine(config: ConfigDict, mesh: Mesh) -> Scorer:
    """The exp-cosine scorer of `config.score`: feature, temperature, block, bank_memory.

    score = -log(1/M sum_m exp(cos(f, f_m) / t)): the logarithm of Rafiee et al. (2022), Eq. 6, with
    its sign: the same order of images, without its overflow. `score_train` leaves each image out.

    Raises:
      ValueError: a temperature or block that makes no sense; when fitted or scoring, a feature that
        the network does not have, widths that differ, values that are not finite.
    """
    check_numbers(config.temperature, config.block)
    reduction = LogSumExp(float(config.temperature))
    run = streamed(reduction, block=config.block, memory=config.bank_memory, mesh=mesh)

    def score(bank: Bank, features: Features) -> jax.Array:
        test = pick(features, config.feature)
        sums = reduce(bank, jnp.asarray(test), reduction, block=config.block)
        return math.log(len(bank.rows)) - sums

    def score_streamed(bank: Bank, features: Features) -> np.ndarray:
        return _log_count(bank) - run(bank, _test(features, config.feature, bank))

    return Scorer(
        lambda features: unit_bank(pick(features, config.feature)),
        score,
        needs=(config.feature,),
        score_train=lambda bank: _log_count(bank, 1) - run(bank, bank.rows, leave_out=True),
        streamed=score_streamed,
    )


def knn(config: ConfigDict, mesh: Mesh) -> Scorer:
    """The KNN scorer of `config.score`: feature, neighbour, approximate, block, bank_memory.

    score = |x/|x| - z|^2, z the neighbour-th nearest unit vector of the bank (Sun et al. 2022,
    whose distance is its root: the same order; squared as in OpenOOD's code). `score_train` leaves
    each image out.

    Raises:
      ValueError: a neighbour or block below 1; when fitted, a bank smaller than `neighbour`; and as
        `exp_cosine`.
    """
    check_numbers(1.0, config.block)
    if config.neighbour < 1:
        raise ValueError(f"score.neighbour = {config.neighbour}: use 1 or more")
    reduction = TopK(int(config.neighbour), bool(config.approximate))
    limits = {"block": config.block, "memory": config.bank_memory}
    run = streamed(reduction, mesh=mesh, finish=_squared_distance, **limits)

    def fit(features: Features) -> Bank:
        bank = unit_bank(pick(features, config.feature))
        check_neighbours("score.neighbour", config.neighbour, len(bank.rows))
        return bank

    def score(bank: Bank, features: Features) -> jax.Array:
        test = jnp.asarray(pick(features, config.feature))
        return _squared_distance(reduce(bank, test, reduction, block=config.block))

    def score_train(bank: Bank) -> np.ndarray:
        check_neighbours("score.neighbour", config.neighbour, len(bank.rows) - 1)
        return run(bank, bank.rows, leave_out=True)

    return Scorer(
        fit,
        score,
        needs=(config.feature,),
        score_train=score_train,
        streamed=lambda bank, features: run(bank, _test(features, config.feature, bank)),
    )


def check_neighbours(key: str, neighbours: int, bank: int) -> None:
    """Refuses more neighbours than there are.

    Raises:
      ValueError: naming the key of the config.
    """
    if not 1 <= neighbours <= bank:
        raise ValueError(f"{key} = {neighbours}: the bank has {bank} images; use 1 to {bank}")


def log_mean_exp_cosine(
    bank: Array, test: Array, *, temperature: float, block: int, mesh: Mesh | None = None
) -> np.ndarray:
    """log(1/M sum_m exp(cos(test_n, bank_m) / temperature)), higher = more in-distribution.

    Rafiee et al. (2022), Eq. 6, is minus the exponential of this.

    Args:
      bank: [M, D], of any norm; a zero vector has cosine 0 to everything. test: [N, D].
      temperature: above 0. block: bank rows compared at once. mesh: None = this process's first
        device.

    Returns:
      float32 [N].

    Raises:
      ValueError: an empty bank, widths that differ, features that are not finite, bad numbers.
    """
    units, test = _pair(bank, test, temperature, block)
    run = _run(LogSumExp(float(temperature)), block, mesh)
    return run(units, test) - _log_count(units)


def log_mean_exp_cosine_leave_one_out(
    bank: Array, *, temperature: float, block: int, mesh: Mesh | None = None
) -> np.ndarray:
    """`log_mean_exp_cosine` of each bank row under the M - 1 others. bank: [M, D] -> float32 [M].

    Raises:
      ValueError: fewer than two rows, features that are not finite, bad numbers.
    """
    check_numbers(temperature, block)
    units = unit_bank(bank)
    count = _log_count(units, 1)
    return _run(LogSumExp(float(temperature)), block, mesh)(units, units.rows, True) - count


def nearest(
    bank: Array, test: Array, *, neighbours: int, block: int, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The exact nearest bank rows by cosine, nearest first; of equal ones the first row.

    Args:
      bank: [M, D]. test: [N, D]. neighbours: k <= M. block: bank rows compared at once. mesh: as
        `log_mean_exp_cosine`.

    Returns:
      cosines float32 [N, k], descending, and bank rows int32 [N, k].

    Raises:
      ValueError: more neighbours than the bank has, and as `log_mean_exp_cosine`.
    """
    units, test = _pair(bank, test, 1.0, block)
    check_neighbours("score.knn", neighbours, len(units.rows))
    return _run(TopK(neighbours), block, mesh)(units, test)


def weighted_knn_log_votes(
    bank: Array,
    bank_labels: Array,
    test: Array,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
    block: int = 4096,
    mesh: Mesh | None = None,
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
    cosines, rows = nearest(bank, test, neighbours=neighbours, block=block, mesh=mesh)
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
    mesh: Mesh | None = None,
) -> float:
    """Share of test images whose class has the most votes; rows labelled -1 take no part.

    Raises:
      ValueError: no labelled row, and as `weighted_knn_log_votes`.
    """
    in_bank, in_test = np.asarray(bank_labels) >= 0, np.asarray(test_labels) >= 0
    if not (in_bank.any() and in_test.any()):
        raise ValueError("kNN accuracy needs labelled images in the bank and in the test set")
    # Classes by their place: labels may be few and large.
    present, places = np.unique(np.asarray(bank_labels)[in_bank], return_inverse=True)
    votes = weighted_knn_log_votes(
        bank if in_bank.all() else np.asarray(bank)[in_bank],
        places,
        np.asarray(test)[in_test],
        classes=len(present),
        neighbours=neighbours,
        temperature=temperature,
        block=block,
        mesh=mesh,
    )
    return float(np.mean(present[votes.argmax(1)] == np.asarray(test_labels)[in_test]))


def _squared_distance(found: Any) -> jax.Array:
    """Of unit vectors, from their cosine."""
    return jnp.maximum(2.0 - 2.0 * found[0][:, -1], 0.0)


def _log_count(bank: Bank, left_out: int = 0) -> np.float32:
    count = len(bank.rows) - left_out
    if count < 1:
        raise ValueError("leave-one-out needs two bank rows or more")
    return np.float32(math.log(count))


def _test(features: Features, field: str, bank: Bank) -> np.ndarray:
    return check_features(pick(features, field), "test", width=bank.rows.shape[1])


def _pair(bank: Array, test: Array, temperature: float, block: int) -> tuple[Bank, np.ndarray]:
    check_numbers(temperature, block)
    units = unit_bank(bank)
    return units, check_features(test, "test", width=units.rows.shape[1])


def _run(reduction: Any, block: int, mesh: Mesh | None) -> Any:
    return streamed(reduction, block=block, memory=MEMORY, mesh=mesh or sharding.local_mesh())
