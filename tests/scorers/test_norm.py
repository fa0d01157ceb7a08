"""Norm scores: their views, an independent NumPy form, batches, devices, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, sharding
from ood_jax.data.source import from_array
from ood_jax.scorers import norm, views
from ood_jax.types import Features, Forward, Net, Outputs
from ood_jax.views.crops import evaluation_view

SIZE, A = 6, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (SIZE * SIZE * 3, 5)).astype(np.float32)
ALL = ("norm", "norm_ensemble", "norm_mean", "cosine_norm_mean")


def config(batch=4, **score):
    numbers = {"batch": batch, "feature": "features", "augmentations": A, "crop_scale": (0.08, 1.0)}
    return ConfigDict(
        {
            "data": {"size": SIZE, "mean": MEAN, "std": STD, "memory": 10**9, "timeout": 0.0},
            "model": {"image_size": SIZE},
            "score": numbers | {"block": 4, "bank_memory": 10**6} | score,
        }
    )


def apply(params, stats, inputs, *, train, key=None):
    hidden = inputs.reshape(inputs.shape[0], -1) @ params
    if stats:
        return Outputs(hidden * 7), stats
    return Outputs(hidden * 7, projections=hidden), stats


NET = Net(lambda key, inputs: ({}, {}), apply)


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def extract(name, array, c=None, devices=1, stats=()):
    c = c or config()
    mesh = sharding.make_mesh(devices)
    scorer = getattr(norm, name)(c.score, mesh)
    found = features.extract(
        NET,
        WEIGHTS,
        stats,
        from_array("a", array),
        config=c,
        mesh=mesh,
        extras=(scorer.extra,),
    )
    return scorer, found.features


@jax.jit
def random_view(image, index, number):
    return views._view(Forward(lambda x: x, SIZE, MEAN, STD), image, index, number, (0.08, 1.0))


def by_hand(array):
    """f of the clean image and of each view, float64 [1 + A, N, P], image by image."""

    def f(inputs):
        return np.asarray(inputs, np.float64).reshape(len(inputs), -1) @ WEIGHTS

    rows = []
    for i in range(len(array)):
        one, index = jnp.asarray(array[i : i + 1]), jnp.array([i])
        clean = evaluation_view(one, size=SIZE, mean=MEAN, std=STD)
        random = [random_view(one, index, n) for n in range(A)]
        rows.append([f(x)[0] for x in (clean, *random)])
    return np.moveaxis(np.array(rows), 1, 0)


def right_scores(array, train):
    f, bank = by_hand(array), by_hand(train)[0]
    norm_mean = (f.mean(0) ** 2).sum(-1)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f[0], bank)]
    return {
        "norm": -(f[0] ** 2).sum(-1),
        "norm_ensemble": -(f**2).sum(-1).mean(0),
        "norm_mean": -norm_mean,
        "cosine_norm_mean": -((units[0] @ units[1].T).max(1) + norm_mean),
    }


@pytest.mark.parametrize("name", ALL)
def test_equals_numpy_whatever_the_batch_and_the_devices(name):
    train, test = images(9), images(5, seed=2)
    right = right_scores(test, train)[name]
    scorer, fitted_on = extract(name, train)
    state = scorer.fit(fitted_on)
    found = extract(name, test, config(batch=3), devices=2)[1]
    np.testing.assert_allclose(scorer.score(state, found), right, rtol=1e-4)
    if scorer.streamed is not None:
        np.testing.assert_allclose(scorer.streamed(state, found), right, rtol=1e-4)
    assert set(scorer.needs) <= found.extra.keys()


def test_views_differ_by_image_and_by_number():
    same = np.repeat(images(1), 3, axis=0)
    f = by_hand(same)
    assert np.abs(f[0] - f[0, 0]).max() < 1e-12
    distances = np.abs(f[1:, :, None] - f[1:, None]).max(-1)
    assert (distances[:, ~np.eye(3, dtype=bool)] > 1e-3).all()
    assert (np.abs(f[1] - f[2]).max(-1) > 1e-3).all()


def test_without_a_projection_head_the_feature_is_taken():
    array = images(4)
    found = extract("norm", array, stats=(np.zeros(1),))[1]
    np.testing.assert_allclose(found.extra["embedding"], 7 * by_hand(array)[0], rtol=1e-3)
    assert found.projections is None


def test_larger_crops_are_nearer_to_the_clean_image():
    """By the spread of f over views, E|f|^2 - |E f|^2 (Eqs. 15 and 16)."""
    spreads = []
    for scale in ((0.08, 0.1), (0.95, 1.0)):
        found = extract("norm_mean", images(6), config(crop_scale=scale, augmentations=6))[1]
        spreads.append(np.subtract(*found.extra["norms"].T).mean())
    assert spreads[1] < 0.8 * spreads[0]


def test_scorers_of_equal_numbers_share_one_computation():
    c = config().score
    extras = {getattr(norm, name)(c, None).extra for name in ALL[1:]}
    assert len(extras) == 1
    for others in ({"augmentations": A + 1}, {"crop_scale": (0.5, 1.0)}):
        other = norm.norm_mean(config(**others).score, None).extra
        assert other.name != next(iter(extras)).name


@pytest.mark.parametrize("name", ALL)
def test_normalised_projections_are_refused(name):
    units = np.eye(4, dtype=np.float32)
    held = Features(units, extra={"embedding": units, "norms": np.ones((4, 2), np.float32)})
    scorer = getattr(norm, name)(config().score, sharding.make_mesh(1))
    with pytest.raises(ValueError, match="all 4 train images have norm 1, so norms tell nothing"):
        scorer.fit(held)
    broken = units.copy()
    broken[2, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 4 train features are not finite"):
        scorer.fit(held._replace(extra=held.extra | {"embedding": broken}))


def test_mistakes():
    with pytest.raises(ValueError, match="augmentations = 0: use 1 or more"):
        norm.norm_mean(config(augmentations=0).score, None)
    for scale in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (0.5,)):
        with pytest.raises(ValueError, match=r"score.crop_scale = .*two shares of the area"):
            norm.norm_mean(config(crop_scale=scale).score, None)
    with pytest.raises(ValueError, match=r"logits, which score\.feature names"):
        extract("norm", images(2), config(feature="logits"), stats=(np.zeros(1),))
