"""Contrastive losses in blocks over 1, 2 and 4 devices: value, gradient, memory."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair_by_pair import LABELS, LOSSES, B, P, T, all_losses, brute_force, brute_gradient, close
from pair_by_pair import example as pairs

from ood_jax import sharding
from ood_jax.losses.contrastive import nt_xent, supcon, supcon_with_self, uniformity, whole_batch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def assert_right():
    """Fails unless {name: (values, gradient)} are those of the plain form and of NumPy."""
    z = pairs()
    plain = all_losses(whole_batch, z)
    brute = {name: (brute_force(name, z), brute_gradient(name, z)) for name in LOSSES}

    def check(found):
        for name in LOSSES:
            for expected in (plain, brute):
                close(found[name][0], expected[name][0])
                close(found[name][1], expected[name][1])

    return check


def _on_mesh(devices, block):
    mesh = sharding.make_mesh(devices)
    z = jax.device_put(pairs(), sharding.batch_sharding(mesh))
    return all_losses(sharding.each_row(mesh, block), z)


# 16 anchors: blocks that leave a remainder of a device's share, and one larger than it.
@pytest.mark.parametrize("devices, block", [(1, 3), (1, 99), (2, 5)])
def test_blocks_and_devices(assert_right, devices, block):
    assert_right(_on_mesh(devices, block))


def test_four_devices(assert_right, tmp_path):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    path = tmp_path / "found.npz"
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=120)
    with np.load(path, allow_pickle=False) as found:
        assert found["devices"] == 4
        assert_right({name: (found[f"{name}/0"], found[f"{name}/1"]) for name in LOSSES})


def on_four_devices(path):
    """What `test_four_devices` runs in a process of its own: 4 anchors a device, in blocks of 3."""
    found = _on_mesh(0, 3)
    arrays = {f"{name}/{i}": found[name][i] for name in LOSSES for i in range(2)}
    np.savez(path, devices=jax.device_count(), **arrays)


@pytest.mark.parametrize("name", ["nt_xent", "supcon", "supcon_with_self"])
def test_gradient_as_negative(name):
    """Image 0 lies on device 0; in the loss of image 5, on device 1, it is a negative only."""
    mesh, z = sharding.make_mesh(2), pairs()
    assert LABELS[0] != LABELS[5]

    def gradient(rows):
        placed = jax.device_put(z, sharding.batch_sharding(mesh))
        return jax.jit(jax.grad(lambda z: LOSSES[name](z, rows)[5]))(placed)

    def without_negatives(function, tree):
        return jax.vmap(function, in_axes=(0, None))(tree, jax.lax.stop_gradient(tree))

    expected = brute_gradient(name, z, weights=np.arange(B) == 5)
    assert np.abs(expected[0]).max() > 1e-3
    close(gradient(sharding.each_row(mesh, 3)), expected)
    dropped = gradient(without_negatives)
    assert not np.any(dropped[0])
    assert np.abs(dropped - expected).max() > 1e-3


def _sizes(jaxpr):
    """Elements of every value in a jaxpr and in the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


IMAGES, BLOCK = 8192, 256


def _step(name, rows):
    """Value and gradient of [IMAGES, 2, P] embeddings and their labels; only compiled here."""

    def loss(z, labels):
        if name == "nt_xent":
            return nt_xent(z, temperature=T, rows=rows).mean()
        if name == "uniformity":
            return uniformity(z.reshape(-1, P), rows=rows)
        supervised = {"supcon": supcon, "supcon_with_self": supcon_with_self}[name]
        return supervised(z, labels, temperature=T, rows=rows).mean()

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "name, devices",
    [("nt_xent", 1), ("nt_xent", 2), ("supcon", 2), ("supcon_with_self", 1), ("uniformity", 2)],
)
def test_memory(name, devices):
    """8,192 x 2: forward and backward hold blocks of 256 rows against all, never all pairs."""
    mesh, rows = sharding.make_mesh(devices), 2 * IMAGES
    place = sharding.batch_sharding(mesh)
    z = jax.ShapeDtypeStruct((IMAGES, 2, P), jnp.float32, sharding=place)
    labels = jax.ShapeDtypeStruct((IMAGES,), jnp.int32, sharding=place)

    def largest(rows):
        return max(_sizes(jax.make_jaxpr(_step(name, rows))(z, labels).jaxpr))

    blocked = sharding.each_row(mesh, BLOCK)
    assert largest(whole_batch) >= rows**2
    assert largest(blocked) <= BLOCK * rows

    def memory(rows):
        compiled = _step(name, rows).lower(z, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    pairs = 4 * rows**2 // devices  # bytes on a device
    assert memory(whole_batch) >= pairs
    assert memory(blocked) < 6 * (4 * BLOCK * rows) < pairs / 5


if __name__ == "__main__":
    on_four_devices(sys.argv[1])
