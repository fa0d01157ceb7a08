"""Losses of classifiers: against NumPy and scikit-learn, closed forms, gradients, invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ood_jax import sharding
from ood_jax.losses.classify import cross_entropy, cross_entropy_to_uniform, logit_norm

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


def test_each_image_may_have_its_own_smoothing():
    logits, labels = example(6)
    shares = np.linspace(0, 1, B).astype(np.float32)
    found = cross_entropy(logits, labels, label_smoothing=shares)
    each = [
        cross_entropy(logits[i : i + 1], labels[i : i + 1], label_smoothing=float(shares[i]))[0]
        for i in range(B)
    ]
    np.testing.assert_allclose(found, each, rtol=1e-6)
    np.testing.assert_allclose(found[-1], cross_entropy_to_uniform(logits)[-1], rtol=1e-6)


def float64_softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_logit_norm_is_numpys(temperature):
    logits, labels = example(7)
    f = logits.astype(np.float64)
    p = float64_softmax(f / (temperature * (np.sqrt((f**2).sum(1, keepdims=True)) + 1e-7)))
    found = logit_norm(logits, labels, temperature=temperature)
    assert found.shape == (B,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, -np.log(p[np.arange(B), labels]), rtol=1e-4, atol=1e-6)


def test_logit_norm_in_closed_form():
    """Of two classes that differ by sqrt(2) / tau; without a direction log K."""
    logits = jnp.asarray([[3.0, -3.0], [0.0, 0.0]])
    for label, sign in ((0, -1), (1, 1)):
        found = logit_norm(logits, jnp.full(2, label), temperature=0.5)
        margin = sign * np.sqrt(2) / 0.5
        np.testing.assert_allclose(found, [np.log1p(np.exp(margin)), np.log(2)], rtol=1e-5)


def test_logit_norm_sees_directions_alone():
    """The same whatever the length, so the gradient is orthogonal to the logits."""
    logits, labels = example(8)

    def loss(s):
        return logit_norm(s, labels, temperature=0.2)

    whole = loss(logits)
    np.testing.assert_allclose(loss(1000 * logits), whole, rtol=1e-4)
    np.testing.assert_allclose(loss(1e-20 * logits) > 0, True)
    grad = jax.grad(lambda s: loss(s).sum())(logits)
    assert np.abs(grad).max() > 0.01
    np.testing.assert_allclose((grad * logits).sum(1), 0.0, atol=1e-5)
    order = np.random.default_rng(3).permutation(B)
    again = logit_norm(logits[order], labels[order], temperature=0.2)
    np.testing.assert_allclose(again, whole[order], rtol=1e-5)
    spread = sharding.global_batch(sharding.make_mesh(2), {"s": logits, "y": labels})
    found = jax.jit(lambda s, y: logit_norm(s, y, temperature=0.2))(spread["s"], spread["y"])
    np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_logit_norm_of_extreme_lengths_has_a_finite_gradient(scale):
    logits, labels = example(9)
    grad = jax.grad(lambda s: logit_norm(s, labels, temperature=0.04).sum())(scale * logits)
    assert np.isfinite(grad).all()


def test_cross_entropy_to_uniform_is_numpys():
    logits, _ = example(10)
    found = cross_entropy_to_uniform(logits)
    assert found.shape == (B,) and found.dtype == jnp.float32
    p = float64_softmax(logits.astype(np.float64))
    np.testing.assert_allclose(found, -np.log(p).mean(1), rtol=1e-5)
    assert (found > np.log(K)).all()
    np.testing.assert_allclose(cross_entropy_to_uniform(jnp.full((2, K), 5.0)), np.log(K), 1e-6)
    certain = cross_entropy_to_uniform(1000.0 * jnp.eye(K))  # of 1000 to each of K - 1 others
    np.testing.assert_allclose(certain, 1000 * (K - 1) / K, rtol=1e-5)


def test_cross_entropy_to_uniform_gradient_and_invariance():
    logits, _ = example(11)
    grad = jax.grad(lambda s: cross_entropy_to_uniform(s).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - 1 / K, atol=1e-6)
    np.testing.assert_array_equal(
        np.isfinite(jax.grad(lambda s: cross_entropy_to_uniform(s).sum())(1e6 * logits)), True
    )
    whole = cross_entropy_to_uniform(logits)
    classes = np.random.default_rng(4).permutation(K)
    for same in (logits + 50.0, logits[:, classes]):
        np.testing.assert_allclose(cross_entropy_to_uniform(same), whole, rtol=1e-4)
    spread = sharding.global_batch(sharding.make_mesh(2), {"s": logits})
    np.testing.assert_allclose(jax.jit(cross_entropy_to_uniform)(spread["s"]), whole, rtol=1e-6)
