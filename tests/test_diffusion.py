"""Noise schedules, the forward process and the loss of a diffusion on vectors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.diffusion import (
    alphas_cumprod,
    denoising_loss,
    noised,
    restored,
    standard_of,
    standardised,
)
from ood_jax.models.diffusion import denoiser

KEY = jax.random.key(0)


def test_the_schedule_is_stable_diffusions():
    alphas = alphas_cumprod()
    assert alphas.shape == (1000,) and alphas.dtype == np.float64
    expected, left = [], 1.0
    for i in range(1000):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999
        left *= 1 - root * root
        expected.append(left)
    np.testing.assert_allclose(alphas, expected, rtol=1e-12)
    # The range of noise over signal that samplers of Stable Diffusion 1 are written for.
    sigmas = np.sqrt((1 - alphas) / alphas)
    np.testing.assert_allclose(sigmas[[0, -1]], [0.0292, 14.6146], atol=5e-5)


def test_the_cosine_is_nichols_and_dhariwals():
    steps = 40
    alphas = alphas_cumprod("cosine", steps)

    def f(t):
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t + 1) / f(0) for t in range(steps - 1)]
    np.testing.assert_allclose(alphas[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(alphas[-1], 0.001 * alphas[-2], rtol=1e-9)  # beta held at .999


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
def test_signal_falls_within_0_and_1(schedule):
    alphas = alphas_cumprod(schedule, 100)
    assert (np.diff(alphas) < 0).all() and alphas[-1] > 0 and alphas[0] < 1


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="schedule 'linear': use scaled_linear or cosine"):
        alphas_cumprod("linear")
    with pytest.raises(ValueError, match="times = 1 noise steps"):
        alphas_cumprod(times=1)


def test_the_forward_process_keeps_variance_and_shrinks_the_mean():
    rng = np.random.default_rng(0)
    clean, noise = 2 + rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2))
    found = np.asarray(noised(clean, noise, np.full(20_000, 0.36)))
    np.testing.assert_allclose(found.mean(0), 0.6 * 2, atol=0.03)
    np.testing.assert_allclose(found.var(0), 1, atol=0.03)
    np.testing.assert_allclose(noised(clean, noise, 1.0), clean, rtol=1e-6)


def vectors(rows, size=3):
    rng = np.random.default_rng(2)
    return rng.normal(size=(rows, size)).astype(np.float32), np.arange(rows, dtype=np.int32)


def loss_of(predict, clean, index, **changed):
    settings = {"alphas": alphas_cumprod(), "blur": 0.5, "dropout": 0.1} | changed
    return denoising_loss(predict, clean, clean, index, KEY, **settings)


def test_whoever_knows_the_clean_vector_has_no_loss():
    clean, index = vectors(50)

    def knows(noisy, signal, condition, given):
        signal = signal[:, None]
        return (noisy - signal * clean) / jnp.sqrt(1 - signal**2)

    np.testing.assert_allclose(loss_of(knows, clean, index), 0, atol=1e-5)


def test_the_best_guess_on_standard_normal_data_loses_the_mean_alpha_bar():
    """noise given x_t is normal with mean sqrt(1 - alpha_bar) x_t and variance alpha_bar."""
    alphas = alphas_cumprod()
    clean, index = vectors(20_000)
    losses = loss_of(lambda x, signal, *_: jnp.sqrt(1 - signal**2)[:, None] * x, clean, index)
    assert losses.shape == (20_000,) and losses.dtype == jnp.float32
    np.testing.assert_allclose(losses.mean(), alphas.mean(), rtol=0.03)
    nothing = loss_of(lambda x, *_: 0 * x, clean, index)
    np.testing.assert_allclose(nothing.mean(), 1, rtol=0.03)


@pytest.mark.parametrize("blur", [0.0, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_the_condition_is_the_embedding_with_noise_and_sometimes_withheld(blur, dropout):
    clean, index = vectors(4000)
    seen = []

    def predict(noisy, signal, condition, given):
        seen.append((np.asarray(condition), np.asarray(given)))
        return noisy

    loss_of(predict, clean, index, blur=blur, dropout=dropout)
    [(condition, given)] = seen
    np.testing.assert_allclose((condition - clean).std(), blur, rtol=0.03)
    np.testing.assert_allclose(1 - given.mean(), dropout, atol=0.02 if 0 < dropout < 1 else 0)


def network():
    net = denoiser(3, 3, width=8, depth=1)
    params = net.init(KEY)
    rng = np.random.default_rng(3)
    return net, jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)


def gradient(dropout):
    net, params = network()
    clean, index = vectors(64)

    def mean_loss(params):
        predict = partial(net.apply, params)
        return loss_of(predict, clean, index, dropout=dropout).mean()

    return params, jax.jit(mean_loss), jax.jit(jax.grad(mean_loss))(params)


def test_the_gradient_is_the_slope():
    params, mean_loss, found = gradient(dropout=0.3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    rng = np.random.default_rng(4)
    way = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    ahead, behind = (
        mean_loss(jax.tree.map(lambda x, d, s=sign: x + s * 1e-2 * d, params, way))
        for sign in (1, -1)
    )
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), found, way)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=0.02)


@pytest.mark.parametrize(("dropout", "moves"), [(0.0, False), (1.0, True)])
def test_the_null_condition_is_learnt_where_the_condition_is_withheld(dropout, moves):
    found = gradient(dropout)[2]["null"]
    assert bool(np.any(found != 0)) is moves


def test_the_loss_of_an_example_is_its_own():
    """In any order, on any number of devices."""
    net, params = network()
    clean, index = vectors(16)
    predict = partial(net.apply, params)
    losses = loss_of(predict, clean, index)
    order = np.random.default_rng(5).permutation(16)
    np.testing.assert_allclose(loss_of(predict, clean[order], index[order]), losses[order], 1e-5)
    two = sharding.batch_sharding(sharding.make_mesh(2))
    split = sharding.place((clean, index), (two, two))
    np.testing.assert_allclose(
        jax.jit(lambda c, i: loss_of(predict, c, i))(*split), losses, rtol=1e-5
    )
    assert not np.allclose(loss_of(predict, clean, index + 16), losses, rtol=1e-2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blur": -0.1}, r"blur = -0.1: use 0 \(none\) or more"),
        ({"blur": math.nan}, "blur = nan"),
        ({"dropout": 1.5}, "dropout = 1.5: use 0"),
    ],
)
def test_numbers_that_make_no_loss_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        loss_of(lambda x, *_: x, *vectors(4), **changed)


def test_standardising_takes_out_mean_and_deviation_and_puts_them_back():
    rng = np.random.default_rng(6)
    rows = (rng.normal(size=(500, 4)) * [1, 10, 0.1, 3] + [0, 5, 100, -2]).astype(np.float32)
    standard = standard_of(rows)
    np.testing.assert_allclose(standard.mean, rows.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(standard.std, rows.std(0, dtype=np.float64), rtol=1e-5)
    found = standardised(rows, standard)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-3)
    np.testing.assert_allclose(restored(found, standard), rows, rtol=1e-5)


def test_moments_are_the_same_in_any_number_of_blocks(monkeypatch):
    rows, _ = vectors(50)
    whole = standard_of(rows)
    monkeypatch.setattr("ood_jax.diffusion.ROWS", 7)
    for one, other in zip(standard_of(rows), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_cannot_be_standardised_is_refused():
    rows, _ = vectors(10, size=6)
    rows[:, [2, 4]] = 7
    with pytest.raises(ValueError, match=r"2 of 6 dimensions .* zero variance, the first is 2"):
        standard_of(rows)
    with pytest.raises(ValueError, match="3 of 3 dimensions"):
        standard_of(vectors(1)[0])
    rows[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 10 train features are not finite, the first in row"):
        standard_of(rows)
