"""Golden scorers, those of a bank: OpenOOD's KNN and NNGuide; theirs are higher = more ID."""

import jax
import numpy as np
import pytest

from ood_jax import config, sharding
from ood_jax.scorers import knn, nnguide
from ood_jax.types import Features, LastLayer


@pytest.fixture
def g(golden):
    return golden("scorers")


@pytest.fixture
def settings(g):
    c = config.base("dino_negatives").score
    with c.unlocked():
        c.neighbour = int(g["knn_K"])
        c.nnguide_neighbours = int(g["knn_K"])
        c.nnguide_share = 1.0
        c.block = len(g["train"]) // 3
    return c


def features(g, rows):
    layer = LastLayer(g["W"].T, g["b"], "features")
    return Features(g[rows], g[rows] @ g["W"].T + g["b"], last_layer=layer)


@pytest.mark.parametrize("name", ["knn", "nnguide"])
@pytest.mark.parametrize("devices", [1, 2])
def test_openood(g, settings, name, devices):
    module = {"knn": knn.knn, "nnguide": nnguide.nnguide}[name]
    scorer = module(settings, sharding.make_mesh(devices))
    state = scorer.fit(features(g, "train"))
    given = features(g, "test")._replace(last_layer=None)
    for found in (jax.jit(scorer.score)(state, given), scorer.streamed(state, given)):
        for kind in ("f64", "official"):
            expected = g[f"{kind}/{name}"]
            allowed = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(-np.asarray(found), expected, atol=allowed, rtol=0)
