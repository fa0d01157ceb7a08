"""KL of logits and features: NumPy, closed forms, gradients at the edges, invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.losses.knowledge import knowledge, softmax_kl
from ood_jax.models.feature_map import FeatureMap

SHAPE = (6, 5)


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(0)
    return tuple(3 * rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))


def total(first, second):
    rows = softmax_kl(first, second)
    return jnp.sum(rows * (1 + jnp.arange(rows.size))), rows


both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def softmax(rows):
    powers = np.exp(rows.astype(np.float64) - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_numpy(logits):
    (_, rows), _ = both(*logits)
    p, q = map(softmax, logits)
    assert rows.shape == (6,) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, np.sum(p * np.log(p / q), -1), rtol=1e-5)


def test_directions(logits):
    student, teacher = logits
    paper = knowledge(student, teacher, direction="student_teacher")
    np.testing.assert_allclose(paper, softmax_kl(student, teacher))
    official = knowledge(student, teacher, direction="teacher_student")
    np.testing.assert_allclose(official, softmax_kl(teacher, student))
    assert np.abs(np.asarray(paper) - official).max() > 1e-2
    with pytest.raises(ValueError, match="use student_teacher or teacher_student"):
        knowledge(student, teacher, direction="both")
    with pytest.raises(ValueError, match=r"gives \[6, 5\] and the teacher \[6, 4\]"):
        knowledge(student, teacher[:, :4], direction="student_teacher")


def test_closed_forms(logits):
    np.testing.assert_allclose(softmax_kl(logits[0], logits[0] + 3), np.zeros(6), atol=1e-6)
    certain = 1e4 * jax.nn.one_hot(jnp.arange(3), 10)
    np.testing.assert_allclose(softmax_kl(certain, jnp.zeros((3, 10))), np.log(10), rtol=1e-6)


def test_gradients(logits):
    _, grads = both(*logits)
    p, q = map(softmax, logits)
    weights = 1 + np.arange(6)[:, None]
    ratio = np.log(p / q)
    first = weights * p * (ratio - np.sum(p * ratio, -1, keepdims=True))
    np.testing.assert_allclose(grads[0], first, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads[1], weights * (q - p), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_gradients_are_finite_where_probabilities_vanish(logits, size):
    (value, _), grads = both(logits[0] * np.float32(size), logits[1])
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_invariance(logits):
    (_, rows), _ = both(*logits)
    images = np.random.default_rng(1).permutation(6)
    classes = np.random.default_rng(2).permutation(5)
    (_, moved), _ = both(*(x[images][:, classes] for x in logits))
    np.testing.assert_allclose(moved, rows[images], rtol=1e-5, atol=1e-6)


def test_one_device_is_two(logits):
    found = []
    for devices in (1, 2):
        spread = sharding.batch_sharding(sharding.make_mesh(devices))
        found.append(both(*(jax.device_put(x, spread) for x in logits)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_map_of_features_that_do_not_vary_gives_numbers(batch):
    net = FeatureMap(3)
    teacher, student = np.full((batch, 4), 2.0, np.float32), np.ones((batch, 3), np.float32)
    variables = net.init(jax.random.key(0), teacher, False)

    def loss(params):
        given = {**variables, "params": params}
        mapped, updated = net.apply(given, teacher, True, mutable=["batch_stats"])
        return knowledge(student, mapped, direction="student_teacher").mean(), updated

    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updated, grads)))
