"""Golden scorers: OpenOOD's post-hoc scores on a linear model; theirs are higher = more ID."""

import jax
import numpy as np
import pytest

from ood_jax import config, sharding
from ood_jax.scorers import covariance, knn, last_layer, logits, mahalanobis, nnguide, subspace
from ood_jax.scorers.linear import linear
from ood_jax.scorers.percentile import percentile
from ood_jax.scorers.rows import labelled
from ood_jax.types import Features, LastLayer

STRICT, LOOSE = 1e-4, 1e-3
MESH = sharding.make_mesh(1)


@pytest.fixture
def g(golden):
    return golden("scorers")


@pytest.fixture
def settings(g):
    c = config.base("dino_negatives").score
    with c.unlocked():
        c.react_percentile = float(g["react_percentile"])
        c.dice_percentile = float(g["dice_p"])
        c.gen_gamma = float(g["gen_gamma"])
        c.nci_alpha = float(g["nci_alpha"])
        c.vim_dim = int(g["vim_dim"])
        c.neighbour = c.nnguide_neighbours = int(g["knn_K"])
        c.nnguide_share = 1.0
        c.block = len(g["train"]) // 3
        c.shrinkage = "none"
    return c


def features(g, rows, labels=None):
    layer = LastLayer(g["W"].T, g["b"], "features")
    return Features(g[rows], g[rows] @ g["W"].T + g["b"], labels=labels, last_layer=layer)


def fitted(g, scorer, on="train"):
    labels = g["train_labels"] if on == "train" else None
    state = scorer.fit(features(g, on, labels))
    given = features(g, "test")._replace(last_layer=None, logits=g["logits"])
    return np.asarray(jax.jit(scorer.score)(state, given), np.float64)


def agree(g, key, found, tolerance=STRICT, official=STRICT):
    """Relative to the largest, as the golden README has it; OpenOOD itself is in float32."""
    for kind, allowed in (("f64", tolerance), ("official", max(tolerance, 5 * official))):
        expected = g[f"{kind}/{key}"]
        np.testing.assert_allclose(
            -found, expected, atol=allowed * np.abs(expected).max(), rtol=0, err_msg=kind
        )


def test_msp(g, settings):
    agree(g, "msp", fitted(g, logits.msp(settings, MESH)) - 1)


def test_max_logit(g, settings):
    agree(g, "maxlogit", fitted(g, logits.max_logit(settings, MESH)))


@pytest.mark.parametrize("key, temperature", [("ebo", 1.0), ("ebo_T2", 2.0)])
def test_energy(g, settings, key, temperature):
    settings.energy_temperature = temperature
    agree(g, key, fitted(g, logits.energy(settings, MESH)))


@pytest.mark.parametrize("key, top", [("gen", None), ("gen_M2", 2)])
def test_gen(g, settings, key, top):
    settings.gen_top = top or settings.gen_top
    # OpenOOD's float32 loses what is within 1e-7 of 1.
    agree(g, key, fitted(g, logits.gen(settings, MESH)), official=0.02)


def test_klm_of_the_validation_set(g, settings):
    agree(g, "klm", fitted(g, logits.klm(settings, MESH), on="val"))


def test_react_of_the_validation_set(g, settings):
    threshold = percentile(g["val"], float(g["react_percentile"]))
    np.testing.assert_allclose(threshold, g["react/threshold"], rtol=1e-6)
    agree(g, "react", fitted(g, last_layer.react(settings, MESH), on="val"))


@pytest.mark.parametrize("name", ["gradnorm", "dice", "nci", "fdbd"])
def test_last_layer(g, settings, name):
    agree(g, name, fitted(g, getattr(last_layer, name)(settings, MESH)))


@pytest.mark.parametrize("metric", last_layer.SHE_METRICS)
def test_she(g, settings, metric):
    settings.she_metric = metric
    agree(g, f"she_{metric}", fitted(g, last_layer.she(settings, MESH)))


def test_vim(g, settings):
    scorer = subspace.vim(settings, MESH)
    facts = scorer.facts(scorer.fit(features(g, "train")))
    np.testing.assert_allclose(facts["alpha"], g["vim/alpha"], rtol=LOOSE)
    assert facts["dim"] == g["vim_dim"]
    agree(g, "vim", fitted(g, scorer), LOOSE)


def test_residual_of_the_validation_set(g, settings):
    agree(g, "residual", fitted(g, subspace.residual(settings, MESH), on="val"), LOOSE)


@pytest.mark.parametrize(
    "key, name", [("mds", "mahalanobis_shared"), ("rmds", "mahalanobis_relative")]
)
def test_mahalanobis(g, settings, key, name):
    agree(g, key, fitted(g, getattr(mahalanobis, name)(settings, MESH)), LOOSE)


def test_in_float64(g):
    how = covariance.Estimator("none", 0.0, pseudo_inverse=True)
    with jax.enable_x64(True):
        shared = mahalanobis.fit_shared(
            g["train"], labelled(features(g, "train", g["train_labels"]), "mds"), MESH, how
        )
        found = mahalanobis.nearest_class(shared, g["test"])
        layer, rows = linear(features(g, "train"), "vim")
        origin = subspace.origin_of(layer)
        null = subspace.null_space(rows, origin, int(g["vim_dim"]), MESH)
        state = subspace.Subspace(layer, origin, null, np.zeros((), np.float32))
        alpha = subspace.alpha_of(state, rows, MESH)
    np.testing.assert_allclose(-np.asarray(found), g["f64/mds"], rtol=1e-9)
    np.testing.assert_allclose(alpha, g["vim/alpha"], rtol=1e-5)


@pytest.mark.parametrize("name", ["knn", "nnguide"])
@pytest.mark.parametrize("devices", [1, 2])
def test_bank(g, settings, name, devices):
    module = {"knn": knn.knn, "nnguide": nnguide.nnguide}[name]
    scorer = module(settings, sharding.make_mesh(devices))
    state = scorer.fit(features(g, "train"))
    given = features(g, "test")._replace(last_layer=None)
    for found in (jax.jit(scorer.score)(state, given), scorer.streamed(state, given)):
        for kind in ("f64", "official"):
            expected = g[f"{kind}/{name}"]
            allowed = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(-np.asarray(found), expected, atol=allowed, rtol=0)
