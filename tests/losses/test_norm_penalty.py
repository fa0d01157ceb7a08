"""The norm penalty: NumPy, closed forms, gradients with zero rows, invariance; its AUROC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.losses.norm import norm_penalty, told_apart

SHAPE = (6, 2, 5)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def total(features):
    """Weighted, so that a gradient sent to the wrong row shows."""
    norms = norm_penalty(features)
    return jnp.sum(norms * (1 + jnp.arange(norms.size).reshape(norms.shape))), norms


both = jax.jit(jax.value_and_grad(total, has_aux=True))


def test_numpy(features):
    (_, norms), grad = both(features)
    expected = np.sqrt(np.sum(features.astype(np.float64) ** 2, -1))
    assert norms.shape == SHAPE[:-1] and norms.dtype == np.float32
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
    weights = 1 + np.arange(expected.size).reshape(expected.shape)
    np.testing.assert_allclose(
        grad, (weights / expected)[..., None] * features, rtol=1e-5, atol=1e-6
    )


def test_closed_forms():
    np.testing.assert_allclose(norm_penalty(jnp.asarray([3.0, -4.0])), 5.0, rtol=1e-6)
    np.testing.assert_allclose(norm_penalty(jnp.full((2, 16), -0.5)), [2.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(norm_penalty(jnp.zeros((3, 4))), np.zeros(3))


def test_zero_rows_have_no_gradient(features):
    features = features.copy()
    features[2], features[4, 1] = 0, 0
    (_, norms), grad = both(features)
    zero = ~features.any(-1)
    np.testing.assert_array_equal(norms[zero], 0)
    np.testing.assert_array_equal(grad[zero], 0)
    lengths = np.linalg.norm(grad, axis=-1) / (1 + np.arange(zero.size).reshape(zero.shape))
    np.testing.assert_allclose(lengths[~zero], 1, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(norm_penalty)(jnp.zeros(4)), 0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradient_does_not_depend_on_the_length(features, scale):
    """Its length stays 1 where the squares would vanish or overflow."""
    (_, norms), grad = both(features)
    (_, moved), moved_grad = both(features * np.float32(scale))
    np.testing.assert_allclose(moved, norms * scale, rtol=1e-5)
    np.testing.assert_allclose(moved_grad, grad, rtol=1e-5, atol=1e-6)


def test_invariance(features):
    (_, norms), _ = both(features)
    order = np.random.default_rng(1).permutation(len(features))
    np.testing.assert_array_equal(norm_penalty(features[order]), norms[order])
    np.testing.assert_allclose(norm_penalty(-features[..., ::-1]), norms, rtol=1e-6)


def test_one_device_is_two(features):
    found = []
    for devices in (1, 2):
        spread = sharding.batch_sharding(sharding.make_mesh(devices))
        found.append(both(jax.device_put(features, spread)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


def test_half_precision(features):
    """bfloat16 features: norms in float32, gradients in their own type."""
    half = jnp.asarray(features, jnp.bfloat16)
    (_, norms), grad = both(half)
    assert norms.dtype == np.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(norms, np.linalg.norm(half.astype(np.float32), axis=-1), rtol=1e-5)


def test_told_apart():
    """As the pairs of norms say, ties half."""
    rng = np.random.default_rng(3)
    inside, outside = rng.integers(0, 6, (7, 2)).astype(float), rng.integers(0, 5, 9).astype(float)
    pairs = inside.reshape(-1, 1) - outside
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    np.testing.assert_allclose(told_apart(inside, outside), expected, rtol=1e-6)
    assert told_apart(np.ones(4), np.ones(3)) == 0.5
    assert told_apart(np.full(4, 2.0), np.ones((3, 2))) == 1
