"""CSI's score against the golden arrays of its evals/ood_pre.py, through the whole path."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.scorers import csi, views
from ood_jax.types import Features, Forward, Outputs

PARTS = ("train", "test")


def config(z, shifts):
    return ConfigDict(
        {
            "feature": "features",
            "augmentations": int(z["samples"]),
            "shifts": shifts,
            "block": 7,
            "bank_memory": 10**6,
        }
    )


@pytest.fixture
def features(golden, monkeypatch):
    """(golden arrays, function): f of image n under view t is what the golden file says.

    A view is one pixel of two channels, n and t: turning it changes nothing.
    """
    z = golden("csi_score")
    monkeypatch.setattr(
        views,
        "_view",
        lambda forward, images, index, number, scale: jnp.stack(
            [index, jnp.full_like(index, number)], 1
        )[:, None, None],
    )

    def of(part, shifts):
        given = jnp.asarray(z[f"{part}_features"], jnp.float32)
        logits = jnp.asarray(z[f"{part}_shift_logits"], jnp.float32)
        index = jnp.arange(len(given))

        def apply(at):
            row, view = at[:, 0, 0, 0], at[:, 0, 0, 1]
            return Outputs(
                at[:, 0, 0], projections=given[row, view], second_logits=logits[row, view]
            )

        images = jnp.zeros((len(given), 2, 2, 3), jnp.uint8)
        extra = views.shifted(config(z, shifts)).compute(Forward(apply, 2, (), ()), images, index)
        return Features(np.zeros((len(given), 1)), extra=extra)

    return z, of


def close(found, expected):
    """1e-5 of the largest: both terms have signs, and their sum may be near 0."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("path", ["score", "streamed"])
def test_csi_score(features, path):
    z, of = features
    shifts = int(z["K_shift"])
    scorer = csi.csi(config(z, shifts), sharding.make_mesh(2))
    train, test = (of(part, shifts) for part in PARTS)
    state = scorer.fit(train)
    np.testing.assert_allclose(state.weight_similarity, z["weight_sim"], rtol=1e-5)
    np.testing.assert_allclose(state.weight_shift, z["weight_shi"], rtol=1e-5)
    for bank, axis in zip(state.banks, z["axis"], strict=True):
        np.testing.assert_allclose(bank.rows * bank.scales[:, None], axis, rtol=1e-5, atol=1e-6)
    close(test.extra["shift_logits"], z["term_shift"])
    scores = np.asarray(getattr(scorer, path)(state, test))
    close(-scores, z["score"])
    close(-scores, z["score_official"])


def test_simclr_score(features):
    """Without shifts: the first block of columns is what one would have extracted."""
    z, of = features
    scorer = csi.csi(config(z, 1), sharding.make_mesh(1))
    state = scorer.fit(of("train", 1))
    scores = np.asarray(scorer.score(state, of("test", 1)))
    close(-scores, z["score_simclr_only"])


def test_similarity_of_each_shift(features):
    """Without a classifier the score is the mean of the weighted similarities."""
    z, of = features
    shifts = int(z["K_shift"])
    scorer = csi.csi(config(z, shifts), sharding.make_mesh(1))
    train, test = (
        found._replace(extra=found.extra | {"shift_logits": 0 * found.extra["shift_logits"]})
        for found in (of(part, shifts) for part in PARTS)
    )
    scores = np.asarray(scorer.score(scorer.fit(train), test))
    right = (z["term_sim"] * z["weight_sim"]).mean(1)
    close(-scores, right)
