"""DDIM and PLMS against NumPy, against the exact answer for Gaussian data, and on many devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ood_jax import sharding
from ood_jax.diffusion import alphas_cumprod, denoising_loss
from ood_jax.diffusion_sampling import ddim, guided, plms, sample, sampler_steps
from ood_jax.models.diffusion import denoiser

ALPHAS = alphas_cumprod()
RNG = np.random.default_rng(0)
SIZE, CONDITION = 4, 3
MATRICES = {
    "x": RNG.normal(0, 0.3, (SIZE, SIZE)),
    "condition": RNG.normal(0, 0.3, (CONDITION, SIZE)),
    "null": RNG.normal(0, 0.3, SIZE),
}


def stand_in(params, noisy, signal, condition, given):
    """A network that is linear in all it is told."""
    told = jnp.where(given[:, None], condition @ params["condition"], params["null"])
    return noisy @ params["x"] * (1 - signal[:, None]) + told * signal[:, None]


def guided_numpy(x, alpha, condition, scale):
    """The stand-in's noise under guidance, float64."""
    share = np.sqrt(alpha)
    null = x @ MATRICES["x"] * (1 - share) + MATRICES["null"] * share
    told = x @ MATRICES["x"] * (1 - share) + condition @ MATRICES["condition"] * share
    return null + scale * (told - null)


def move_numpy(x, noise, alpha, to):
    clean = (x - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
    return np.sqrt(to) * clean + np.sqrt(1 - to) * noise


def ddim_numpy(x, times, noise):
    for i, t in enumerate(times):
        to = ALPHAS[times[i + 1] if i + 1 < len(times) else 0]
        x = move_numpy(x, noise(x, ALPHAS[t]), ALPHAS[t], to)
    return x


def plms_numpy(x, times, noise):
    past = []
    for i, t in enumerate(times):
        to = ALPHAS[times[i + 1] if i + 1 < len(times) else 0]
        now = noise(x, ALPHAS[t])
        if not past:
            ahead = move_numpy(x, now, ALPHAS[t], to)
            used = (now + noise(ahead, ALPHAS[times[1]])) / 2
        elif len(past) == 1:
            used = (3 * now - past[-1]) / 2
        elif len(past) == 2:
            used = (23 * now - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            used = (55 * now - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past.append(now)
        x = move_numpy(x, used, ALPHAS[t], to)
    return x


@pytest.mark.parametrize(("sampler", "by_hand"), [(ddim, ddim_numpy), (plms, plms_numpy)])
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_the_samplers_do_what_numpy_does(sampler, by_hand, steps):
    x, condition = RNG.normal(size=(6, SIZE)), RNG.normal(size=(6, CONDITION))
    times = [i * (1000 // steps) + 1 for i in reversed(range(steps))]
    expected = by_hand(x, times, lambda x, a: guided_numpy(x, a, condition, 7.5))
    predict = partial(stand_in, MATRICES)
    noise = guided(predict, jnp.asarray(condition, jnp.float32), 7.5)
    found = jax.jit(lambda x: sampler(noise, x, sampler_steps(ALPHAS, steps)))(x.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[1.0, 0.6, 0.1], [0.6, 1.5, -0.3], [0.1, -0.3, 0.3]])


def exact(x, alpha_bar):
    """E[noise | x_t] where the data are normal: linear in x_t."""
    spread, axes = np.linalg.eigh(COVARIANCE)
    told = (x - jnp.sqrt(alpha_bar) * MEAN) @ axes
    return jnp.sqrt(1 - alpha_bar) * (told / (alpha_bar * spread + 1 - alpha_bar)) @ axes.T


def reached(sampler, steps, stop=0):
    """Mean and covariance of what noise of covariance 1 becomes: the map is affine.

    The noise has the mean that the schedule leaves of the data; 0, what samplers begin with, is
    right for standardised data only.
    """
    chosen = sampler_steps(ALPHAS, steps, stop)
    mean = np.sqrt(chosen.before[0]) * MEAN
    found = sampler(exact, (mean + np.eye(4, 3, -1)).astype(np.float32), chosen)
    slopes = np.asarray(found[1:] - found[0], np.float64)
    return np.asarray(found[0]), slopes.T @ slopes


@pytest.mark.parametrize(("sampler", "tolerance"), [(ddim, 0.1), (plms, 0.015)])
def test_noise_becomes_the_data_where_the_best_prediction_is_known(sampler, tolerance):
    mean, covariance = reached(sampler, 50)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=tolerance)


def test_plms_needs_fewer_steps_than_ddim_and_both_gain_by_more():
    def error(sampler, steps):
        return np.abs(reached(sampler, steps)[1] - COVARIANCE).max()

    assert error(plms, 20) < error(ddim, 20) / 3
    assert error(ddim, 100) < error(ddim, 20) / 3


@pytest.mark.parametrize("stop", [100, 400])
def test_stopping_early_leaves_the_noise_of_that_step(stop):
    """The reverse process at step T has the distribution of the data after T steps of noise."""
    mean, covariance = reached(plms, 100, stop)
    alpha = ALPHAS[stop]
    np.testing.assert_allclose(mean, np.sqrt(alpha) * MEAN, atol=0.01)
    expected = alpha * COVARIANCE + (1 - alpha) * np.eye(3)
    np.testing.assert_allclose(covariance, expected, atol=0.02)


def test_ddim_with_all_its_randomness_reaches_the_data_too():
    rows, key = 20_000, jax.random.key(1)

    def draw(step):
        return jax.random.normal(jax.random.fold_in(key, step), (rows, 3))

    found = jax.jit(
        lambda: ddim(exact, draw(999), sampler_steps(ALPHAS, 100), eta=1.0, fresh=draw)
    )()
    np.testing.assert_allclose(found.mean(0), MEAN, atol=0.08)
    np.testing.assert_allclose(np.cov(found.T), COVARIANCE, atol=0.08)


@pytest.mark.parametrize(("scale", "told"), [(1.0, True), (0.0, False)])
def test_guidance_of_1_is_the_condition_alone_and_0_none(scale, told):
    x = np.ones((2, SIZE), np.float32)
    condition = np.ones((2, CONDITION), np.float32)
    asked = []

    def predict(noisy, signal, condition, given):
        asked.append(np.asarray(given))
        return stand_in(MATRICES, noisy, signal, condition, given)

    found = guided(predict, condition, scale)(x, 0.25)
    np.testing.assert_array_equal(asked, [[told, told]])
    np.testing.assert_allclose(found, guided_numpy(x, 0.25, condition, scale), rtol=1e-5)


def test_the_steps_are_stable_diffusions():
    before, after = sampler_steps(ALPHAS, 50)
    np.testing.assert_allclose(before, ALPHAS[np.arange(981, 0, -20)], rtol=1e-6)
    np.testing.assert_allclose(after, ALPHAS[[*range(961, 0, -20), 0]], rtol=1e-6)
    before, after = sampler_steps(ALPHAS, 50, stop=950)
    np.testing.assert_allclose(before, ALPHAS[[981, 961]], rtol=1e-6)
    np.testing.assert_allclose(after, ALPHAS[[961, 950]], rtol=1e-6)


CONDITIONS = RNG.normal(size=(7, CONDITION)).astype(np.float32)


def drawn(conditions=CONDITIONS, *, devices=1, apply=stand_in, params=MATRICES, **changed):
    settings = {"size": SIZE, "steps": sampler_steps(ALPHAS, 10), "key": jax.random.key(0)}
    mesh = sharding.make_mesh(devices)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return sample(apply, params, conditions, mesh=mesh, **settings | changed)


@pytest.mark.parametrize("more", [{}, {"sampler": "ddim", "eta": 1.0, "guidance": 2.0}])
def test_devices_and_blocks_do_not_matter(more):
    whole = drawn(**more)
    assert whole.shape == (7, SIZE) and whole.dtype == np.float32
    for devices, block in ((1, 3), (2, 3), (2, 100)):
        found = drawn(devices=devices, block=block, **more)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    assert not np.allclose(drawn(key=jax.random.key(1), **more), whole, rtol=0.1)


def test_a_row_depends_on_its_own_condition_alone():
    changed = CONDITIONS.copy()
    changed[2] += 1
    same = np.isclose(drawn(changed), drawn(), rtol=1e-5).all(1)
    np.testing.assert_array_equal(same, np.arange(7) != 2)
    assert len(np.unique(drawn(np.repeat(CONDITIONS[:1], 7, 0)), axis=0)) == 7


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler": "ddpm"}, "sampler 'ddpm': use plms or ddim"),
        ({"guidance": np.inf}, "guidance = inf"),
        ({"eta": 0.5}, "eta = 0.5 of plms: use 0, or up to 1 with ddim"),
        ({"eta": 2.0, "sampler": "ddim"}, "eta = 2.0 of ddim"),
        ({"block": 0}, "block = 0 rows"),
        ({"conditions": CONDITIONS[0]}, r"outlier features of shape \[3\]"),
        ({"conditions": np.full((2, 3), np.nan)}, "2 of 2 outlier features are not finite"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        drawn(**changed)


@pytest.mark.parametrize(
    ("steps", "stop", "message"),
    [
        (1000, 0, "steps = 1000 .* use 250 or 500"),
        (300, 0, "steps = 300 does not divide the 1000 noise steps, .* use 200 or 250"),
        (0, 0, "steps = 0 .* use 1 or 2"),
        (50, 981, r"stop = 981: use 0 \(the clean vector\) to 980"),
        (50, -1, "stop = -1"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, stop, message):
    with pytest.raises(ValueError, match=message):
        sampler_steps(ALPHAS, steps, stop)


def trained(data, net, steps):
    """Parameters after `steps` updates of Adam on all of `data`, conditioned on itself."""
    optimiser = optax.adam(3e-3)
    params = net.init(jax.random.key(0))
    index = jnp.arange(len(data))

    def update(carry, step):
        def loss(params):
            predict = partial(net.apply, params)
            settings = {"alphas": ALPHAS, "blur": 0.3, "dropout": 0.2}
            key = jax.random.fold_in(jax.random.key(1), step)
            return denoising_loss(predict, data, data, index, key, **settings).mean()

        params, state = carry
        moves, state = optimiser.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, moves), state), None

    start = params, optimiser.init(params)
    return jax.jit(lambda carry: jax.lax.scan(update, carry, jnp.arange(steps))[0])(start)[0]


def test_a_trained_network_tells_two_conditions_apart():
    rng = np.random.default_rng(7)
    side = np.where(np.arange(128) % 2, 1.0, -1.0)
    data = np.stack([side, 0.5 * side], 1) + rng.normal(0, 0.1, (128, 2))
    data = data.astype(np.float32)
    net = denoiser(2, 2, width=32, depth=2)
    params = trained(data, net, 600)
    centres = np.repeat([[1.0, 0.5], [-1.0, -0.5]], 50, 0).astype(np.float32)
    told, untold = (
        drawn(centres, apply=net.apply, params=params, size=2, guidance=scale)
        for scale in (1.0, 0.0)
    )
    assert (np.sign(told[:, 0]) == np.sign(centres[:, 0])).mean() > 0.97
    assert 0.3 < (untold[:, 0] > 0).mean() < 0.7
    np.testing.assert_allclose(np.abs(told).mean(0), [1, 0.5], atol=0.1)
