"""CSI's score: similarity to the nearest train image times the norm, and the shift classifier."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.scorers import bank, views
from ood_jax.scorers.cosine import check_features
from ood_jax.scorers.stream import streamed as stream
from ood_jax.types import Array, Features, Scorer


class State(NamedTuple):
    """Of K shifts and M train images.

    banks: K times the train features of one shift, [M, P], mean over views. weight_similarity,
    weight_shift: float32 [K]. shift_logits: float32 [M, K], of the train images.
    """

    banks: tuple[bank.Bank, ...]
    weight_similarity: Array
    weight_shift: Array
    shift_logits: Array


def csi(config: ConfigDict, mesh: Mesh) -> Scorer:
    """CSI's detection score (Tack et al. 2020, section 2.3, as evals/ood_pre.py computes it).

    score = -mean_k (max_m <f_k(x), axis_k,m> weight_similarity_k + logit_k(x) weight_shift_k):
    f_k and logit_k are means over the augmentations of the image under shift k, axis_k,m the unit
    vector of train image m, the weights 1 / mean over the train set of |f_k| and of logit_k.
    Without a shift classifier (see `views.shifted`) the term of the logits is left out.

    Config: augmentations (CSI: 10), shifts (1: SimCLR's score, the unweighted similarity alone; 4:
    CSI's rotations; 2: those of self-OECL), feature, block, bank_memory.

    Raises:
      ValueError: no augmentations, other numbers of shifts; when fitted, features that are not
        finite, or 0 everywhere.
    """
    nearest = [  # one a shift: each keeps its own bank on the devices
        stream(
            bank.TopK(1), block=config.block, memory=config.bank_memory, mesh=mesh, finish=_products
        )
        for _ in range(config.shifts)
    ]

    def score(state: State, features: Features) -> Array:
        shifted, shift_logits = _read(features)
        found = [
            _products(bank.top_k(rows, shifted[:, k], k=1, block=config.block))
            for k, rows in enumerate(state.banks)
        ]
        return _total(state, jnp.stack(found, 1), _norms(shifted), shift_logits)

    def streamed(state: State, features: Features) -> np.ndarray:
        shifted, shift_logits = _read(features)
        found = [
            near(rows, np.asarray(shifted[:, k]))
            for k, (near, rows) in enumerate(zip(nearest, state.banks, strict=True))
        ]
        return np.asarray(_total(state, np.stack(found, 1), _norms(shifted), shift_logits))

    def score_train(state: State) -> np.ndarray:
        if len(state.shift_logits) < 2:
            raise ValueError("leave-one-out needs two train images or more")
        found = [
            near(rows, rows.rows, leave_out=True)
            for near, rows in zip(nearest, state.banks, strict=True)
        ]
        norms = np.stack([_norms(rows.rows) for rows in state.banks], 1)
        return np.asarray(_total(state, np.stack(found, 1), norms, state.shift_logits))

    needs = ("shifted", "shift_logits")
    return Scorer(_fit, score, needs, score_train, streamed, _facts, views.shifted(config))


def _fit(features: Features) -> State:
    shifted, shift_logits = (np.asarray(values, np.float32) for values in _read(features))
    shifts = shifted.shape[1]
    rows = [np.ascontiguousarray(shifted[:, k]) for k in range(shifts)]
    banks = tuple(bank.unit_bank(check_features(values, "train")) for values in rows)
    check_features(shift_logits, "shift")
    norms = np.asarray(_norms(shifted), np.float64).mean(0)
    if not norms.all():
        raise ValueError("all train features are 0: nothing is similar to anything")
    logits = shift_logits.mean(0, dtype=np.float64)
    known = logits != 0  # without a classifier all are 0
    weight_similarity = 1 / norms if shifts > 1 else np.ones(1)
    weight_shift = known / np.where(known, logits, 1.0)
    return State(
        banks, weight_similarity.astype(np.float32), weight_shift.astype(np.float32), shift_logits
    )


def _facts(state: State) -> dict[str, Any]:
    return {
        "weight_similarity": np.asarray(state.weight_similarity).tolist(),
        "weight_shift": np.asarray(state.weight_shift).tolist(),
    }


def _total(state: State, products: Array, norms: Array, shift_logits: Array) -> Array:
    """All [N, K] -> [N]; products: with unit vectors of the test images."""
    similarity = products * norms * state.weight_similarity
    return -(similarity + shift_logits * state.weight_shift).mean(1)


def _read(features: Features) -> tuple[Array, Array]:
    extra = features.extra or {}
    return extra["shifted"], extra["shift_logits"]


def _norms(vectors: Array) -> Array:
    """[..., P] -> [...]."""
    return jnp.sqrt(views.squared_norm(vectors))


def _products(found: tuple[Array, Array]) -> Any:
    """What `bank.TopK(1)` finds -> the largest product, [N]."""
    return found[0][:, 0]
