"""The noise prediction on vectors, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.models.diffusion import denoiser, time_embedding

SIZE, CONDITION, WIDTH, DEPTH = 5, 3, 8, 2


@pytest.fixture(scope="module")
def trained():
    """A network of random parameters: nothing is zero as at the start."""
    net = denoiser(SIZE, CONDITION, width=WIDTH, depth=DEPTH)
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    return net, jax.tree.unflatten(tree, drawn)


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    noisy = rng.normal(size=(6, SIZE)).astype(np.float32)
    condition = rng.normal(size=(6, CONDITION)).astype(np.float32)
    signal = np.array([0.07, 0.2, 0.5, 0.8, 0.99, 0.9996], np.float32)
    return noisy, signal, condition, np.array([1, 0, 1, 0, 1, 1], bool)


def dense(layer, x):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def film(params, name, x, told):
    scale, shift = np.split(dense(params[name], told), 2, axis=1)
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt(centred.var(1, keepdims=True) + 1e-6) * (1 + scale) + shift


def waves(signal, width):
    angle = np.arccos(signal.astype(np.float64)) / (np.pi / 2) * 1000
    waves = angle[:, None] / 10_000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(waves), np.sin(waves)], axis=1)


def test_it_is_the_network_that_the_docstrings_describe(trained, batch):
    net, params = trained
    noisy, signal, condition, given = batch
    told = dense(params["condition"], np.where(given[:, None], condition, params["null"]))
    told = silu(told + dense(params["time"], waves(signal, WIDTH)))
    told = silu(dense(params["told"], told))
    x = dense(params["in"], noisy)
    for i in range(DEPTH):
        block = params[f"block_{i}"]
        x = x + dense(block["mlp_1"], silu(dense(block["mlp_0"], film(block, "film", x, told))))
    velocity = dense(params["out"], film(params, "film_out", x, told))
    share = signal[:, None].astype(np.float64)
    expected = np.sqrt(1 - share**2) * noisy + share * velocity
    np.testing.assert_allclose(net.apply(params, *batch), expected, atol=2e-3)


def test_time_is_the_angle_of_signal_and_noise():
    signal = np.array([0.0, 0.1, 0.7, 0.999], np.float32)
    np.testing.assert_allclose(time_embedding(signal, 10), waves(signal, 10), atol=1e-3)


def test_at_first_it_guesses_as_for_standard_normal_data(batch):
    net = denoiser(SIZE, CONDITION, width=WIDTH, depth=DEPTH)
    noisy, signal, *_ = batch
    expected = np.sqrt(1 - signal.astype(np.float64) ** 2)[:, None] * noisy
    np.testing.assert_allclose(net.apply(net.init(jax.random.key(0)), *batch), expected, atol=1e-6)


def test_only_where_it_is_given_the_condition_counts(trained, batch):
    net, params = trained
    noisy, signal, condition, given = batch
    before = np.asarray(net.apply(params, *batch))
    after = np.asarray(net.apply(params, noisy, signal, condition + 1, given))
    np.testing.assert_array_equal((before == after).all(1), ~given)


@pytest.mark.parametrize(
    ("sizes", "keywords", "message"),
    [
        ((0, 3), {"width": 8, "depth": 1}, "size = 0"),
        ((5, 0), {"width": 8, "depth": 1}, "condition = 0"),
        ((5, 3), {"width": 8, "depth": 0}, "depth = 0"),
        ((5, 3), {"width": 7, "depth": 1}, "width = 7: use an even number"),
    ],
)
def test_numbers_that_make_no_network_are_refused(sizes, keywords, message):
    with pytest.raises(ValueError, match=message):
        denoiser(*sizes, **keywords)
