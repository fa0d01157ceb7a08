"""Classifier discrepancy: NumPy, closed forms, gradients at the edges, invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.losses.discrepancy import discrepancy, entropy, margin_loss

SHAPE = (6, 5)
MARGIN = 1.2


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(0)
    return rng.normal(size=SHAPE).astype(np.float32), 4 * rng.normal(size=SHAPE).astype(np.float32)


def loss(first, second, margin=MARGIN):
    return margin_loss(discrepancy(first, second), margin=margin)


both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def plain_entropy(logits):
    """Per image, by loops, float64."""
    out = []
    for row in logits.astype(np.float64):
        p = [np.exp(x) / sum(np.exp(y) for y in row) for x in row]
        out.append(-sum(x * np.log(x) for x in p))
    return np.array(out)


def test_numpy(logits):
    first, second = logits
    found = entropy(first)
    assert found.shape == (6,) and found.dtype == np.float32
    np.testing.assert_allclose(found, plain_entropy(first), rtol=1e-5)
    expected = plain_entropy(first) - plain_entropy(second)
    np.testing.assert_allclose(discrepancy(first, second), expected, rtol=1e-5, atol=1e-6)
    value, _ = both(first, second)
    np.testing.assert_allclose(value, max(MARGIN - expected.mean(), 0), rtol=1e-5)
    assert value > 0


def test_closed_forms():
    np.testing.assert_allclose(entropy(jnp.full((3, 7), 2.5)), np.full(3, np.log(7)), rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.asarray([[0.0, 0, -200, -200]])), np.log(2), rtol=1e-6)
    uniform, certain = jnp.zeros((4, 10)), 1e4 * jax.nn.one_hot(jnp.arange(4), 10)
    np.testing.assert_allclose(discrepancy(uniform, certain), np.full(4, np.log(10)), rtol=1e-6)
    np.testing.assert_allclose(discrepancy(certain, uniform), np.full(4, -np.log(10)), rtol=1e-6)
    assert margin_loss(jnp.asarray([2.0, 1.0]), margin=1.5) == 0
    assert margin_loss(jnp.asarray([3.0, -1.0]), margin=1.5) == 0.5  # of the mean, not 2.5 / 2


def test_gradients(logits):
    first, second = logits
    _, grads = both(first, second)
    p, log_p = jax.nn.softmax(first), jax.nn.log_softmax(first)
    expected = p * (log_p + plain_entropy(first)[:, None]) / len(first)  # of -H / B
    np.testing.assert_allclose(grads[0], expected, rtol=1e-4, atol=1e-6)
    assert all(np.abs(grad).max() > 1e-3 for grad in grads)
    value, none = both(first, second, -3.0)  # the mean is above the margin
    assert value == 0 and not np.any(none[0]) and not np.any(none[1])


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_gradients_are_finite_where_probabilities_vanish(logits, size):
    value, grads = both(logits[0] * np.float32(size), logits[1])
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_invariance(logits):
    first, second = logits
    value, _ = both(first, second)
    images = np.random.default_rng(1).permutation(len(first))
    classes = np.random.default_rng(2).permutation(first.shape[1])
    np.testing.assert_allclose(both(first[images], second[images])[0], value, rtol=1e-6)
    np.testing.assert_allclose(both(first[:, classes], second[:, classes])[0], value, rtol=1e-6)
    shifted = first + np.arange(6, dtype=np.float32)[:, None]
    np.testing.assert_allclose(both(shifted, second)[0], value, rtol=1e-5)
    np.testing.assert_allclose(  # entropies are of each image by itself
        entropy(first[:2]), entropy(first)[:2], rtol=1e-6
    )


def test_one_device_is_two(logits):
    found = []
    for devices in (1, 2):
        spread = sharding.batch_sharding(sharding.make_mesh(devices))
        found.append(both(*(jax.device_put(x, spread) for x in logits)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)
