"""Golden knn_exp_cosine: OOD_classifier of the released code, and Eq. 6."""

import jax
import numpy as np
import pytest

from ood_jax import config, sharding
from ood_jax.scorers import build
from ood_jax.scorers.knn import log_mean_exp_cosine
from ood_jax.types import Features


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_log_mean_exp(golden, parts):
    g = golden("knn_exp_cosine")
    block = -(-len(g["bank"]) // parts)
    found = log_mean_exp_cosine(
        g["bank"], g["test"], temperature=float(g["temperature"]), block=block
    )
    np.testing.assert_allclose(found, g["log_mean_exp"], atol=1e-4, rtol=0)
    shift = float(g["official_shift"]) / float(g["temperature"])
    np.testing.assert_allclose(np.exp(found - shift), g["official_score"], rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_scorer_orders_as_equation_6(golden, devices):
    g = golden("knn_exp_cosine")
    settings = config.base("dino_negatives").score
    with settings.unlocked():
        settings.temperature = float(g["temperature"])
        settings.block = 64
    scorer = build("exp_cosine", settings, sharding.make_mesh(devices))
    # The scorer takes norms away by itself.
    state, test = scorer.fit(Features(g["bank"] * 3.0)), Features(g["test"] * 0.1)
    for scores in (jax.jit(scorer.score)(state, test), scorer.streamed(state, test)):
        np.testing.assert_allclose(-np.exp(-scores), g["eq6_score"], rtol=1e-4)
        # The same order, but for scores that float32 cannot tell apart.
        assert np.all(np.diff(np.asarray(scores)[np.argsort(g["eq6_score"])]) > -1e-5)
