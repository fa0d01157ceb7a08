"""k-th neighbours: NumPy, ties, blocks, devices, errors."""

import jax
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.neighbours import boundary, kth_distances, kth_largest


def brute(bank, queries, k):
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    squares = ((queries[:, None].astype(np.float64) - bank[None]) ** 2).sum(-1)
    return np.sort(squares, 1)[:, k - 1]


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)


def test_kth_largest():
    values = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    values[1, 3:] = values[1, 3]  # ties
    values[2, :4] = -np.inf
    values[3] *= 1e-42  # subnormal, of both signs
    run = jax.jit(kth_largest, static_argnums=1)
    for k in (1, 4, 9):
        np.testing.assert_array_equal(run(values, k), -np.sort(-values, 1)[:, k - 1])


@pytest.mark.parametrize(("k", "memory"), [(1, 1), (3, 1 << 10), (37, 1 << 30)])
def test_distances(rows, k, memory):
    queries = 3 * np.random.default_rng(2).normal(size=(11, 5)).astype(np.float32)
    found = kth_distances(rows, queries, k=k, memory=memory)
    assert found.shape == (11,) and found.dtype == np.float32
    np.testing.assert_allclose(found, brute(rows, queries, k), atol=1e-5)


def test_a_row_is_its_own_first_neighbour(rows):
    np.testing.assert_allclose(kth_distances(rows, rows, k=1, memory=1 << 20), 0, atol=1e-6)
    assert kth_distances(rows, rows, k=2, memory=1 << 20).min() > 1e-3


def test_one_device_is_two(rows):
    found = [
        kth_distances(rows, rows, k=3, memory=1 << 10, mesh=sharding.make_mesh(devices))
        for devices in (1, 2)
    ]
    np.testing.assert_array_equal(*found)


def test_boundary():
    np.testing.assert_array_equal(boundary(np.array([0.1, 0.9, 0.5, 0.9]), 3), [1, 3, 2])


def test_what_makes_no_sense_is_refused(rows):
    with pytest.raises(ValueError, match="neighbour 38 of a bank of 37: use 1 to 37"):
        kth_distances(rows, rows, k=38, memory=1)
    with pytest.raises(ValueError, match=r"queries \[37, 4\] for a bank \[37, 5\]"):
        kth_distances(rows, rows[:, :4], k=1, memory=1)
