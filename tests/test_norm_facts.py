"""The statistics of norms against their definitions in NumPy; which images they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, norm_facts, norm_sets, sharding
from ood_jax.data.source import CorruptImage, Source, from_array
from ood_jax.scorers import views
from ood_jax.types import Forward, Net, Outputs

SIZE, A = 6, 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (SIZE * SIZE * 3, 5)).astype(np.float32)
CONFIG = {
    "data": {"size": SIZE, "mean": MEAN, "std": STD, "memory": 10**9, "timeout": 0.0},
    "model": {"image_size": SIZE},
}


def apply(params, stats, inputs, *, train, key=None):
    hidden = inputs.reshape(inputs.shape[0], -1) @ params
    return Outputs(hidden * 7, projections=hidden), stats


NET = Net(lambda key, inputs: ({}, {}), apply)


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def measured(array, *, batch=4, devices=1, turns=(0,)):
    extra = norm_facts.extra(views.RandomViews("features", A, (0.08, 1.0)), turns)
    found = features.extract(
        NET,
        WEIGHTS,
        (),
        from_array("a", array),
        config=ConfigDict(CONFIG | {"score": {"batch": batch}}),
        mesh=sharding.make_mesh(devices),
        extras=(extra,),
    )
    return norm_facts.per_image(found.features)


@jax.jit
def random_view(image, index, number):
    return views._view(Forward(lambda x: x, SIZE, MEAN, STD), image, index, number, (0.08, 1.0))


def by_hand(array, turns=(0,)):
    """f of the clean image and of each view, float64 [N, 1 + A, P], image by image."""
    rows = []
    for i, image in enumerate(array):
        clean = (image / 255.0 - MEAN) / STD
        drawn = [random_view(image[None], jnp.array([i]), number)[0] for number in range(A)]
        turned = [np.rot90(x, turns[i % len(turns)]) for x in (clean, *drawn)]
        rows.append([np.asarray(x, np.float64).ravel() @ WEIGHTS for x in turned])
    return np.array(rows)


def definitions(f):
    """By Theorem III.1 and Eqs. 12, 13 and 15, one image after the other."""
    mu, sigma, sigma_v = [], [], []
    for own in f:
        mean = own.mean(0)
        mu.append(np.linalg.norm(mean))
        covariance = np.cov(own.T, bias=True)
        along = mean @ covariance @ mean / (mean @ mean)
        sigma.append(np.sqrt(along))
        sigma_v.append(np.sqrt(np.trace(covariance) - along))
    z = f[:, 1:3] / np.linalg.norm(f[:, 1:3], axis=-1, keepdims=True)
    pairs = [
        np.exp(-np.sum((z[i, 0] - z[j, 0]) ** 2))
        for i in range(len(z))
        for j in range(len(z))
        if i != j
    ]
    norm = np.linalg.norm(f[:, 0], axis=-1)
    q05, q50, q95 = np.quantile(norm, (0.05, 0.5, 0.95))
    return {
        "norm": {"mean": norm.mean(), "q05": q05, "q50": q50, "q95": q95},
        "mu": np.mean(mu),
        "sigma": np.mean(sigma),
        "sigma_v": np.mean(sigma_v),
        "mu_over_sigma_v": np.mean(np.array(mu) / sigma_v),
        "alignment": np.mean(np.sum((z[:, 0] - z[:, 1]) ** 2, -1)),
        "uniformity": np.log(np.mean(pairs)),
    }


@pytest.mark.parametrize(
    ("batch", "devices", "turns"), [(4, 1, (0,)), (3, 2, (0,)), (3, 2, (2, 3))]
)
def test_numbers_by_their_definitions_whatever_the_batch_and_the_devices(batch, devices, turns):
    array = images(9)
    right = definitions(by_hand(array, turns))
    found = norm_facts.numbers(measured(array, batch=batch, devices=devices, turns=turns))
    assert list(found) == list(right)
    for name, value in found.items():
        assert value == pytest.approx(right[name], rel=2e-4), name


def test_turned_images_differ():
    array = images(4)
    plain, turned = (by_hand(array, turns) for turns in ((0,), (2, 3)))
    assert (np.abs(plain - turned).max(-1) > 1e-3).all()


def test_the_parts_add_up_to_the_ensemble_score():
    """Eq. 15, and the terms of the norm scorers over the same views."""
    f = np.random.default_rng(3).normal(0.5, 1.0, (7, 20, 6)).astype(np.float32)
    parts = np.asarray(norm_facts.terms(f), np.float64)
    np.testing.assert_allclose(parts.sum(1), (f.astype(np.float64) ** 2).sum(-1).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(norm_facts.terms(f)[:, 0], views.norms_over_views(f)[:, 1])


def test_small_deviations_of_large_features_are_not_rounded_away():
    rng = np.random.default_rng(4)
    base = np.array([1000.0, 0, 0])
    f = (base + rng.normal(0, 0.01, (50, 3, 3))).astype(np.float32)
    exact = f.astype(np.float64)
    along = exact[..., 0].var(0)
    parts = np.asarray(norm_facts.terms(f))
    np.testing.assert_allclose(parts[:, 1], along, rtol=0.05)
    np.testing.assert_allclose(parts[:, 2], exact[..., 1:].var(0).sum(-1), rtol=0.05)


def test_features_without_a_direction_and_without_spread():
    f = np.zeros((2, 2, 3), np.float32)
    f[:, 0] = [[1, 0, 0], [-1, 0, 0]]
    np.testing.assert_allclose(norm_facts.terms(f), [[0, 0, 1], [0, 0, 0]])
    same = norm_facts.PerImage(*[np.ones(2)] * 3, np.zeros(2), np.ones((2, 2, 3), np.float32))
    found = norm_facts.numbers(same)
    assert found["mu_over_sigma_v"] is None
    assert (found["alignment"], found["uniformity"]) == pytest.approx((0, 0), abs=1e-6)


def test_features_that_are_not_finite_give_no_numbers():
    whole = measured(images(5))
    broken = whole._replace(
        norm=np.append(whole.norm[1:], np.nan),
        squared_mean=np.append(whole.squared_mean[1:], np.inf),
    )
    found = norm_facts.numbers(broken)
    assert found["norm"] == dict.fromkeys(("mean", "q05", "q50", "q95"))
    assert found["mu"] is None and found["sigma"] is not None
    assert norm_facts.aurocs(whole, broken) == {"norm": None, "norm_mean": None}


def test_aurocs_call_small_norms_ood():
    inside = measured(images(8))
    outside = inside._replace(norm=inside.norm / 10, squared_mean=inside.squared_mean * 10)
    large, small = norm_facts.aurocs(inside, outside).values()
    assert large > 0.9 and small < 0.1
    pairs = inside.squared_mean[:, None] > outside.squared_mean[None]
    assert small == pytest.approx(pairs.mean())


@pytest.mark.parametrize(("count", "wanted"), [(100, 10), (101, 100), (7, 7), (5, 9)])
def test_chosen_images_are_spread_over_the_set_and_the_same_again(count, wanted):
    source = from_array("a", np.arange(count, dtype=np.uint8)[:, None, None, None])
    found = [norm_sets.choose(source, wanted) for _ in range(2)]
    rows = [[int(one.image(i).item()) for i in range(len(one))] for one in found]
    assert rows[0] == rows[1] and len(rows[0]) == min(count, wanted)
    edges = np.arange(len(rows[0]) + 1) * count // len(rows[0])
    assert (edges[:-1] <= rows[0]).all() and (rows[0] < edges[1:]).all()


def test_chosen_images_are_of_all_classes_of_an_alternating_set():
    labels = np.arange(1000) % 10
    source = from_array("a", np.zeros((1000, 1, 1, 3), np.uint8), labels)
    assert set(norm_sets.choose(source, 100).labels) == set(range(10))


def test_sets_are_decoded_once_where_they_can_be():
    reads = []

    def read(i):
        reads.append(i)
        if i == 7:
            raise CorruptImage("seven")
        return images(1, seed=i)[0]

    whole = norm_sets.Part("near", Source("s", 3, read))
    parts = {"a": whole, "b": norm_sets.Part("far", Source("s", 2, lambda i: read(6 + i)))}
    held = norm_sets.held(parts, SIZE, 10**6)
    before = len(reads)
    assert np.array_equal(held["a"].source.images(np.arange(3))[2], images(1, seed=2)[0])
    assert len(reads) == before and held["b"].source is parts["b"].source
    small = norm_sets.held({"a": whole}, SIZE, 10)
    assert small["a"].source is whole.source
