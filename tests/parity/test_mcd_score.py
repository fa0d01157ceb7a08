"""Golden mcd: the L1 discrepancy of two classifiers."""

import numpy as np

from ood_jax import config, sharding
from ood_jax.scorers import build
from ood_jax.types import Features


def test_l1_discrepancy(golden):
    g = golden("mcd")
    scorer = build("l1_discrepancy", config.base("dino_negatives").score, sharding.make_mesh(1))
    given = Features(g["logits1"], logits=g["logits1"], second_logits=g["logits2"])
    found = np.asarray(scorer.score(scorer.fit(given), given))
    # Of the largest: where the classifiers agree, float32 rounds away the difference.
    allowed = 1e-5 * g["l1_score"].max()
    np.testing.assert_allclose(found, g["l1_score"], atol=allowed, rtol=0)
    np.testing.assert_allclose(-found, g["openood_conf"], atol=allowed, rtol=0)
