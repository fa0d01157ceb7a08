"""CLUB: the double loop, closed forms, gradients, constant features, invariance, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.losses.mutual_information import club, given_and_predicted, log_likelihood
from ood_jax.models.gaussian_mlp import far_gaussian, near_gaussian

SHAPE = (6, 5)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    mean, y = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))
    return mean, np.tanh(rng.normal(size=SHAPE)).astype(np.float32), y


def weighted(mean, log_variance, y):
    """Weighted, so that a gradient sent to the wrong row shows."""
    rows = club(mean, log_variance, y)
    return jnp.sum(rows * (1 + jnp.arange(rows.size))), rows


both = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))


def looped(mean, log_variance, y):
    """Every pair, float64."""
    mean, log_variance, y = (x.astype(np.float64) for x in (mean, log_variance, y))

    def log_q(j, i):
        return -np.sum((y[j] - mean[i]) ** 2 / 2 / np.exp(log_variance[i]))

    count = len(y)
    return np.array(
        [log_q(i, i) - np.mean([log_q(j, i) for j in range(count)]) for i in range(count)]
    )


def test_is_the_double_loop(arrays):
    (_, rows), _ = both(*arrays)
    assert rows.shape == (6,) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, looped(*arrays), rtol=1e-5, atol=1e-5)


def test_is_the_double_loop_where_the_mean_is_far_from_all(arrays):
    mean, log_variance, y = arrays
    far = mean + np.float32(1e4)  # squares are 1e8, their difference 1e4
    (_, rows), _ = both(far, log_variance, y)
    np.testing.assert_allclose(rows, looped(far, log_variance, y), rtol=1e-4)


def test_gradients_are_those_of_all_pairs(arrays):
    def pairs(mean, log_variance, y):
        squares = (y[None] - mean[:, None]) ** 2 / 2 * jnp.exp(-log_variance)[:, None]
        apart = squares.sum(-1).mean(1) - jnp.diagonal(squares.sum(-1))
        return jnp.sum(apart * (1 + jnp.arange(len(y))))

    _, grads = both(*arrays)
    expected = jax.grad(pairs, argnums=(0, 1, 2))(*arrays)
    for found, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_closed_forms():
    y = np.array([[1.0], [-1.0]], np.float32)
    zero = np.zeros_like(y)
    # q knows y: log q(y_i|x_i) = 0, the other's is -(2^2) / 2, so half of that on average.
    np.testing.assert_allclose(club(y, zero, y), [1.0, 1.0])
    np.testing.assert_allclose(club(zero, zero, y), [0.0, 0.0])  # q knows nothing of x
    np.testing.assert_allclose(club(-y, zero, y), [-1.0, -1.0])
    np.testing.assert_allclose(log_likelihood(y, zero + np.log(4.0, dtype="f"), y), -np.log(4.0))
    np.testing.assert_allclose(log_likelihood(zero, zero, 3 * y), [-9.0, -9.0])


def test_likelihood_is_twice_the_log_density(arrays):
    from scipy.stats import norm

    mean, log_variance, y = arrays
    density = norm.logpdf(y, mean, np.exp(log_variance / 2)).sum(1)
    expected = 2 * density + SHAPE[1] * np.log(2 * np.pi)
    np.testing.assert_allclose(log_likelihood(*arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_features_that_do_not_vary_give_numbers(constant):
    x = np.full(SHAPE, constant, np.float32)
    net = near_gaussian(SHAPE[1], 8)
    params = net.init(jax.random.key(0), x)

    def loss(params, x):
        q = net.apply(params, x)
        return club(*q, x).mean() - log_likelihood(*q, x).mean(), club(*q, x)

    (value, rows), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(rows, 0, atol=1e-6)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_invariance(arrays):
    (_, rows), _ = both(*arrays)
    order = np.random.default_rng(1).permutation(len(rows))
    (_, moved), _ = both(*(x[order] for x in arrays))
    np.testing.assert_allclose(moved, rows[order], rtol=1e-4, atol=1e-5)
    mean, log_variance, y = arrays
    (_, shifted), _ = both(mean + 2, log_variance, y + 2)
    np.testing.assert_allclose(shifted, rows, rtol=1e-4, atol=1e-5)


def test_one_device_is_two(arrays):
    found = []
    for devices in (1, 2):
        spread = sharding.batch_sharding(sharding.make_mesh(devices))
        found.append(both(*(jax.device_put(x, spread) for x in arrays)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


def test_no_array_of_all_pairs_is_made():
    shape = jax.ShapeDtypeStruct((512, 64), np.float32)
    text = both.lower(shape, shape, shape).as_text()
    assert "512x64xf32" in text and "512x512" not in text


def test_directions():
    student, outliers = np.ones((4, 3)), np.zeros((4, 2))
    x, y = given_and_predicted(student, outliers, direction="outlier_given_student")
    assert x is student and y is outliers
    x, y = given_and_predicted(student, outliers, direction="student_given_outlier")
    assert x is outliers and y is student
    with pytest.raises(ValueError, match="use outlier_given_student or student_given_outlier"):
        given_and_predicted(student, outliers, direction="both")
    with pytest.raises(ValueError, match="each of 4 images with one outlier: got 3"):
        given_and_predicted(student, outliers[:3], direction="outlier_given_student")


def test_shapes_that_differ_are_refused(arrays):
    mean, log_variance, y = arrays
    with pytest.raises(ValueError, match=r"mean \[6, 5\] and log-variance \[6, 5\] where y is"):
        club(mean, log_variance, y[:, :3])
    with pytest.raises(ValueError, match=r"log-variance \[6, 2\]"):
        log_likelihood(mean, log_variance[:, :2], y)


def test_networks_of_the_released_code():
    near = jax.eval_shape(near_gaussian(512).init, jax.random.key(0), np.zeros((1, 768)))["params"]
    widths = {name: leaf["kernel"].shape for name, leaf in near.items()}
    assert widths == {
        "mean_0": (768, 256),
        "mean_1": (256, 512),
        "log_variance_0": (768, 256),
        "log_variance_1": (256, 512),
    }
    far = jax.eval_shape(far_gaussian(64, 512).init, jax.random.key(0), np.zeros((1, 64)))["params"]
    shapes = [far[f"mean_{i}"]["kernel"].shape for i in range(4)]
    assert shapes == [(64, 32), (32, 16), (16, 256), (256, 512)]
    for wrong in (
        lambda: near_gaussian(0),
        lambda: near_gaussian(5, 1),
        lambda: far_gaussian(3, 5),
    ):
        with pytest.raises(ValueError, match="each needs 1 or more"):
            wrong()


def test_log_variance_is_bounded():
    net = near_gaussian(3, 8)
    x = np.full((2, 4), 1e6, np.float32)
    _, log_variance = net.apply(net.init(jax.random.key(0), x), x)
    assert np.abs(log_variance).max() <= 1
