"""The margin-entropy loss: against NumPy, closed forms, gradients, invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.losses.leave_out import margin_entropy

B, M, K = 12, 8, 7


def example(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 2, (count, K)).astype(np.float32) for count in (B, M)]


def entropy(logits):
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1)


@pytest.mark.parametrize("margin", [0.0, 0.4, 1.5])
def test_numpy(margin):
    inside, outside = example()
    for first, second in ((inside, outside), (outside, inside), (3 * inside, 0.1 * outside)):
        expected = max(margin + entropy(first).mean() - entropy(second).mean(), 0)
        found = margin_entropy(first, second, margin=margin)
        assert found.shape == () and found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_closed_forms():
    sure, uniform = 1000.0 * jnp.eye(K), jnp.zeros((M, K))
    np.testing.assert_allclose(margin_entropy(uniform, sure, margin=0.4), 0.4 + np.log(K), 1e-6)
    assert margin_entropy(sure, uniform, margin=0.4) == 0
    np.testing.assert_allclose(margin_entropy(uniform, uniform, margin=0.4), 0.4, rtol=1e-6)
    # Of two uniform and two certain images the mean counts: their entropy is ln K / 2.
    half = jnp.concatenate([sure[:2], uniform[:2]])
    np.testing.assert_allclose(margin_entropy(half, sure, margin=0.0), np.log(K) / 2, rtol=1e-6)


def test_gradients():
    inside, outside = example(1)
    reached = jax.grad(lambda a, b: margin_entropy(a, b, margin=-5.0), (0, 1))(inside, outside)
    assert all((g == 0).all() for g in reached)
    first, second = jax.grad(lambda a, b: margin_entropy(a, b, margin=5.0), (0, 1))(inside, outside)
    p = np.asarray(jax.nn.softmax(inside))
    # dH/dz = -p (ln p + H); a step against the gradient makes inside surer and outside less so.
    np.testing.assert_allclose(
        first, -p * (np.log(p) + entropy(inside)[:, None]) / B, atol=1e-6, rtol=1e-4
    )
    assert entropy(inside - 0.1 * np.asarray(first)).mean() < entropy(inside).mean()
    assert entropy(outside - 0.1 * np.asarray(second)).mean() > entropy(outside).mean()
    extreme = jnp.asarray([[1e4, -1e4, 0.0]])
    grads = jax.grad(lambda a, b: margin_entropy(a, b, margin=0.4), (0, 1))(extreme, extreme)
    assert all(np.isfinite(g).all() for g in grads)


def test_invariance():
    inside, outside = example(2)
    loss = jax.jit(lambda a, b: margin_entropy(a, b, margin=0.4))
    whole = loss(inside, outside)
    assert whole > 0.1
    rng = np.random.default_rng(3)
    classes = rng.permutation(K)
    mixed = loss(inside[rng.permutation(B)][:, classes] + 5, outside[rng.permutation(M)] - 5)
    np.testing.assert_allclose(mixed, whole, rtol=1e-5)
    spread = sharding.global_batch(sharding.make_mesh(2), {"a": inside, "b": outside})
    np.testing.assert_allclose(loss(spread["a"], spread["b"]), whole, rtol=1e-6)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (inside, outside)]
    same = loss(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_array_equal(loss(*half), same)
