"""Golden mahalanobis_classwise: Winkens Eq. 2 and its variants, SSD; theirs: higher = more ID."""

import contextlib

import jax
import numpy as np
import pytest

from ood_jax import config, sharding
from ood_jax.scorers import build, mahalanobis, ssd
from ood_jax.scorers.covariance import Estimator
from ood_jax.scorers.gaussian import (
    Dual,
    fit_mixture,
    fit_rows,
    squared_distance,
    squared_distances,
)
from ood_jax.scorers.rows import labelled
from ood_jax.types import Features

MESH = sharding.make_mesh(2)


@pytest.fixture(params=["float32", "float64"])
def tolerance(request):
    """1e-4 in float32, 1e-8 in float64, as the golden README has it."""
    double = request.param == "float64"
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        yield 1e-8 if double else 1e-4


@pytest.fixture
def g(golden):
    return golden("mahalanobis_classwise")


def classes(g, prefix=""):
    return labelled(Features(g[f"{prefix}train"], labels=g[f"{prefix}labels"]), "golden")


def mixture(g, how, prefix=""):
    found = classes(g, prefix)
    names = tuple(str(c) for c in found.classes)
    return fit_mixture(g[f"{prefix}train"], found.rows, names, MESH, how)


def class_scores(state, rows):
    """[N, C], Eq. 2 before its maximum."""
    squared, log_det = squared_distances(state, rows)
    return -np.asarray(squared + log_det[:, None]).T - rows.shape[1] * np.log(2 * np.pi)


def close(found, expected, tolerance):
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("ddof", [0, 1])
def test_equation_2(g, tolerance, ddof):
    state = mixture(g, Estimator("ridge", float(g["eps"]), ddof))
    squared, log_det = squared_distances(state, g["test"])
    close(squared.T, g[f"ddof{ddof}/mahal_sq"], tolerance)
    close(log_det, g[f"ddof{ddof}/logdet"], tolerance)
    found = class_scores(state, g["test"])
    close(found, g[f"ddof{ddof}/class_score"], tolerance)
    np.testing.assert_array_equal(found.argmax(1), g[f"ddof{ddof}/pred"])
    close(-mahalanobis.classwise_score(state, g["test"]), g[f"ddof{ddof}/score"], tolerance)
    close(-np.min(squared, 0), g[f"ddof{ddof}/max_neg_mahal_only"], tolerance)
    (group,) = state.groups
    close(group.mean[state.places], g["class_means"], tolerance)


@pytest.mark.parametrize("key, how", [("ledoit_wolf", "ledoit_wolf"), ("eps_trace", "trace")])
def test_shrinkage(g, tolerance, key, how):
    state = mixture(g, Estimator(how, float(g["eps"])))
    close(class_scores(state, g["test"]), g[f"{key}/class_score"], tolerance)
    close(-mahalanobis.classwise_score(state, g["test"]), g[f"{key}/score"], tolerance)
    if how == "ledoit_wolf":
        np.testing.assert_allclose(state.amounts, g["ledoit_wolf/shrinkage"], rtol=tolerance)


def test_shared_and_relative(g, tolerance):
    how = Estimator("ridge", float(g["eps"]))
    state = mahalanobis.fit_shared(g["train"], classes(g), MESH, how)
    found = mahalanobis.nearest_class(state, g["test"])
    close(-found, g["shared/score"], tolerance)
    close(found, g["shared/mahal_sq"].min(1), tolerance)
    background = fit_rows(g["train"], None, MESH, how, "all").gaussian
    squared = squared_distance(background, g["test"])
    close(squared, g["relative/background_sq"], tolerance)
    close(squared - found, g["relative/score"], tolerance)


def test_low_rank(g, tolerance):
    state = mixture(g, Estimator("ridge", float(g["eps"])), "lowrank/")
    assert all(isinstance(group, Dual) for group in state.groups)
    close(class_scores(state, g["lowrank/test"]), g["lowrank/class_score"], tolerance)
    found = mahalanobis.classwise_score(state, g["lowrank/test"])
    close(-found, g["lowrank/score"], tolerance)


@pytest.mark.parametrize(
    "name, key, shrinkage",
    [
        ("mahalanobis", "ddof0/score", "ridge"),
        ("mahalanobis", "ledoit_wolf/score", "ledoit_wolf"),
        ("mahalanobis", "eps_trace/score", "trace"),
        ("mahalanobis_shared", "shared/score", "ridge"),
        ("mahalanobis_relative", "relative/score", "ridge"),
        ("ssd", "ssd_pipeline_one_cluster", "none"),
    ],
)
def test_scorers(g, tolerance, name, key, shrinkage):
    settings = config.base("dino_negatives").score
    settings.shrinkage, settings.shrinkage_strength = shrinkage, float(g["eps"])
    scorer = build(name, settings, MESH)
    state = scorer.fit(Features(g["train"], labels=g["labels"]))
    found = np.asarray(jax.jit(scorer.score)(state, Features(g["test"])))
    close(found if name == "ssd" else -found, g[key], tolerance)


@pytest.mark.parametrize(
    "key, shrinkage, clusters",
    [
        ("ssd_one_cluster", "none", "one"),
        ("ssd_one_cluster_ledoit_wolf", "ledoit_wolf", "one"),
        ("ssd_multi_cluster", "none", "classes"),
    ],
)
def test_ssd(g, tolerance, key, shrinkage, clusters):
    how = Estimator(shrinkage, 0.0, pseudo_inverse=True)
    members = classes(g).rows if clusters == "classes" else (np.arange(len(g["train"])),)
    state = fit_mixture(g["train"], members, tuple(map(str, range(len(members)))), MESH, how)
    close(ssd.nearest_cluster(state, g["test"]), g[key], tolerance)
