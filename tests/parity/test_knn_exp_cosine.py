"""Golden knn_exp_cosine: OOD_classifier of the released code, and Eq. 6."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax.scorers import build
from ood_jax.scorers.knn import exp_cosine
from ood_jax.types import Features


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_log_mean_exp(golden, parts):
    g = golden("knn_exp_cosine")
    block = -(-len(g["bank"]) // parts)
    found = exp_cosine(g["bank"], g["test"], temperature=float(g["temperature"]), block=block)
    np.testing.assert_allclose(found, g["log_mean_exp"], atol=1e-4, rtol=0)
    shift = float(g["official_shift"]) / float(g["temperature"])
    np.testing.assert_allclose(np.exp(found - shift), g["official_score"], rtol=1e-4)


def test_scorer_orders_as_equation_6(golden):
    g = golden("knn_exp_cosine")
    config = ConfigDict(
        {"feature": "features", "temperature": float(g["temperature"]), "block": 64}
    )
    scorer = build("exp_cosine", config)
    # The scorer takes norms away by itself.
    bank = Features(jnp.asarray(g["bank"]) * 3.0)
    scores = scorer.score(scorer.fit(bank), Features(jnp.asarray(g["test"]) * 0.1))
    np.testing.assert_allclose(-np.exp(-scores), g["eq6_score"], rtol=1e-4)
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(g["eq6_score"]))
