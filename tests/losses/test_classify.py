"""Cross-entropy: against NumPy and scikit-learn, closed forms, gradients, invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ood_jax import sharding
from ood_jax.losses.classify import cross_entropy

B, K = 12, 7


def example(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (B, K)).astype(np.float32), rng.integers(K, size=B).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.1, 0.9])
def test_numpy(smoothing):
    logits, labels = example()
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    q = np.full((B, K), smoothing / K)
    q[np.arange(B), labels] += 1 - smoothing
    found = cross_entropy(logits, labels, label_smoothing=smoothing)
    assert found.shape == (B,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, -(q * np.log(p)).sum(1), rtol=1e-5)
    if smoothing == 0:
        expected = log_loss(labels, p, labels=np.arange(K))
        np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)


def test_closed_forms():
    labels = jnp.arange(3)
    uniform = cross_entropy(jnp.zeros((3, K)), labels, label_smoothing=0.3)
    np.testing.assert_allclose(uniform, np.log(K), rtol=1e-6)
    # Certain and right: only the smoothed share costs, its distance of 1000 to K - 1 classes.
    certain = cross_entropy(1000.0 * jnp.eye(K)[:3], labels, label_smoothing=0.1)
    np.testing.assert_allclose(certain, 0.1 * 1000 * (K - 1) / K, rtol=1e-5)
    plain = cross_entropy(1000.0 * jnp.eye(K)[:3], labels, label_smoothing=0.0)
    np.testing.assert_array_equal(plain, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_p_minus_q(smoothing):
    logits, labels = example(1)
    grad = jax.grad(lambda s: cross_entropy(s, labels, label_smoothing=smoothing).sum())(logits)
    q = (1 - smoothing) * np.eye(K)[labels] + smoothing / K
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - q, atol=1e-6)
    extreme = jnp.asarray([[1e4, -1e4, 0.0]])
    grad = jax.grad(lambda s: cross_entropy(s, jnp.array([1]), label_smoothing=0.1).sum())(extreme)
    assert np.isfinite(grad).all()


def test_invariance():
    logits, labels = example(2)
    loss = jax.jit(lambda s, y: cross_entropy(s, y, label_smoothing=0.1))
    whole = np.asarray(loss(logits, labels))
    np.testing.assert_allclose(loss(logits + 50.0, labels), whole, atol=1e-4)
    order = np.random.default_rng(3).permutation(B)
    np.testing.assert_allclose(loss(logits[order], labels[order]), whole[order], rtol=1e-6)
    classes = np.random.default_rng(4).permutation(K)
    renamed = loss(logits[:, classes], np.argsort(classes)[labels])
    np.testing.assert_allclose(renamed, whole, rtol=1e-5)
    spread = sharding.global_batch(sharding.make_mesh(2), {"s": logits, "y": labels})
    np.testing.assert_allclose(loss(spread["s"], spread["y"]), whole, rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits, labels = example(5)
    half = jnp.asarray(logits, jnp.bfloat16)
    found = cross_entropy(half, labels, label_smoothing=0.1)
    expected = cross_entropy(half.astype(jnp.float32), labels, label_smoothing=0.1)
    np.testing.assert_array_equal(found, expected)


def test_labels_that_are_no_class_are_nan():
    found = cross_entropy(jnp.zeros((4, 3)), jnp.array([0, -1, 3, 2]), label_smoothing=0.0)
    assert np.isnan(found).tolist() == [False, True, True, False]
