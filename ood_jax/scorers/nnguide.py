"""NNGuide (Park et al. 2023): the energy of an image, guided by its nearest train images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy.special import logsumexp

from ood_jax.scorers.bank import Bank, TopK, reduce, unit_bank
from ood_jax.scorers.cosine import check_features, check_numbers
from ood_jax.scorers.linear import Linear, inputs, linear, logits
from ood_jax.scorers.stream import streamed
from ood_jax.types import Array, Features, Scorer

SEED = 0  # of the draw of the bank
ROWS = 4096  # energies taken at once on the host


class Guide(struct.PyTreeNode):
    """bank: unit inputs of the drawn train images, each times its energy.

    train: inputs of the whole train set, float32 [M, D]; drawn: the bank's rows of it, int64 [S].
    """

    layer: Linear
    bank: Bank
    train: Array
    drawn: Array


def nnguide(config: ConfigDict, mesh: Mesh) -> Scorer:
    """-energy(x) * mean of the largest <x/|x|, bank rows>; x the inputs of the last layer.

    Bank rows are z/|z| * energy(z), z drawn with a fixed seed; energy = logsumexp of the logits
    (Park et al. 2023, Eqs. 4 to 6; OpenOOD takes the first share of its loader). The bank is a
    share of the train set, and one image more than neighbours at least. `score_train` leaves each
    image out. Config: nnguide_neighbours, nnguide_share, block, bank_memory.

    Raises:
      ValueError: a share outside (0, 1], no neighbours, a block below 1; when fitted, a network
        without a last layer, fewer train images than neighbours.
    """
    count, share = int(config.nnguide_neighbours), config.nnguide_share
    check_numbers(1.0, config.block)
    if not (0 < share <= 1 and count >= 1):
        raise ValueError(
            f"score.nnguide_share = {share}, nnguide_neighbours = {count}: use a share above 0 and"
            " at most 1, and 1 neighbour or more"
        )
    reduction = TopK(count)
    limits = {"block": config.block, "memory": config.bank_memory}
    run = streamed(reduction, mesh=mesh, finish=_mean, **limits)

    def fit(features: Features) -> Guide:
        layer, rows = linear(features, "nnguide")
        drawn = _draw(len(rows), share, count)
        bank = unit_bank(rows if len(drawn) == len(rows) else rows[drawn])
        scales = np.asarray(bank.scales * _energies(layer, np.asarray(bank.rows)), np.float32)
        return Guide(layer, bank._replace(scales=scales), rows, drawn)

    def score(state: Guide, features: Features) -> jax.Array:
        rows = jnp.asarray(inputs(state.layer, features))
        guidance = _mean(reduce(state.bank, rows, reduction, block=config.block))
        return -guidance * jax.nn.logsumexp(logits(state.layer, rows), axis=1)

    def score_streamed(state: Guide, features: Features) -> np.ndarray:
        width = state.train.shape[1]
        rows = check_features(inputs(state.layer, features), "test", width=width)
        return -run(state.bank, rows) * _energies(state.layer, rows)

    def score_train(state: Guide) -> np.ndarray:
        if len(state.drawn) <= count:
            raise ValueError(
                f"score.nnguide_neighbours = {count}: leave-one-out needs a bank of {count + 1} or"
                f" more, this one has {len(state.drawn)}"
            )
        rows = np.asarray(state.train)
        own = np.full(len(rows), -1, np.int32)
        own[state.drawn] = np.arange(len(state.drawn))
        return -run(state.bank, rows, own) * _energies(state.layer, rows)

    def facts(state: Guide) -> dict[str, Any]:
        return {"bank": len(state.drawn)}

    return Scorer(fit, score, ("last_layer",), score_train, score_streamed, facts)


def _draw(total: int, share: float, count: int) -> np.ndarray:
    """Which of the train images are the bank, ascending; more than `count` where there are."""
    if total < count:
        raise ValueError(
            f"score.nnguide_neighbours = {count}: there are {total} train images; use 1 to {total}"
        )
    size = min(max(int(np.ceil(share * total)), count + 1), total)
    if size == total:
        return np.arange(total)
    return np.sort(np.random.default_rng(SEED).choice(total, size, replace=False))


def _energies(layer: Linear, rows: np.ndarray) -> np.ndarray:
    """logsumexp of the logits, on the host: float32 [N]; [N, K] never exists."""
    parts = [
        logsumexp(rows[start : start + ROWS] @ layer.kernel + layer.bias, axis=1)
        for start in range(0, len(rows), ROWS)
    ]
    return np.concatenate(parts).astype(np.float32)


def _mean(found: Any) -> jax.Array:
    return found[0].mean(1)
