"""Reductions over a bank: brute force, streamed = pure on one device and two, memory, export."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from ood_jax import sharding
from ood_jax.scorers import stream
from ood_jax.scorers.bank import Bank, LogSumExp, TopK, reduce, unit_bank
from ood_jax.scorers.stream import streamed


def rows_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def products(bank, test):
    test = np.float64(test) / np.linalg.norm(np.float64(test), axis=1, keepdims=True)
    return test @ (np.float64(bank.rows) * np.float64(bank.scales)[:, None]).T


def expected(reduction, similarity):
    if isinstance(reduction, TopK):
        order = np.argsort(-similarity, 1, kind="stable")[:, : reduction.k]
        return np.take_along_axis(similarity, order, 1), order
    t = reduction.temperature
    top = similarity.max(1, keepdims=True)
    return top[:, 0] / t + np.log(np.exp((similarity - top) / t).sum(1))


def agree(reduction, found, similarity):
    right = expected(reduction, similarity)
    if isinstance(reduction, TopK):
        np.testing.assert_allclose(found[0], right[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(found[1], right[1])
    else:
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=2e-6 / reduction.temperature)


REDUCTIONS = [LogSumExp(0.1), LogSumExp(0.001), TopK(5), TopK(5, approximate=True), TopK(33)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("block", [7, 4096])
def test_brute_force(reduction, block):
    bank, test = unit_bank(rows_of(33, 8)), rows_of(20, 8, seed=1)
    found = jax.device_get(reduce(bank, test, reduction, block=block))
    agree(reduction, found, products(bank, test))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stream, "TEST_BLOCK", 8)
    monkeypatch.setattr(stream, "UNIT", 8)
    monkeypatch.setattr(stream, "TEST_GROUP", 2)


@pytest.mark.parametrize("reduction", [LogSumExp(0.1), LogSumExp(0.001), TopK(5)])
@pytest.mark.parametrize("devices", [1, 2])
def test_streamed_is_the_same(reduction, devices, small):
    """Several chunks, the last one ragged; several groups of several test blocks."""
    run = streamed(reduction, block=5, memory=0, mesh=sharding.make_mesh(devices))
    bank, test = unit_bank(rows_of(61, 8)), rows_of(37, 8, seed=1)
    similarity = products(bank, test)
    agree(reduction, run(bank, test), similarity)
    agree(reduction, run(bank, test[:3]), similarity[:3])
    itself = products(bank, bank.rows)
    np.fill_diagonal(itself, -np.inf)
    agree(reduction, run(bank, bank.rows, leave_out=True), itself)
    own = np.full(len(test), -1, np.int32)
    own[[4, 30]] = 60, 2
    similarity[[4, 30], [60, 2]] = -np.inf
    agree(reduction, run(bank, test, leave_out=own), similarity)


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_fewer_rows_than_a_chunk(count):
    bank, test = unit_bank(rows_of(count, 4)), rows_of(5, 4, seed=1)
    run = streamed(TopK(1), block=5, memory=0, mesh=sharding.make_mesh(2))
    agree(TopK(1), run(bank, test), products(bank, test))


@pytest.mark.parametrize("devices", [1, 2])
def test_of_equal_products_the_first_row(devices):
    bank = unit_bank(np.tile(rows_of(4, 3), (12, 1)))
    run = streamed(TopK(7), block=5, memory=0, mesh=sharding.make_mesh(devices))
    _, rows = run(bank, bank.rows[:4])
    np.testing.assert_array_equal(rows, np.arange(4)[:, None] + 4 * np.arange(7))


def test_what_fits_stays_on_the_devices(monkeypatch):
    monkeypatch.setattr(sharding, "uses_host_memory", lambda mesh: False)
    placed = []
    place = sharding.place_pieces
    monkeypatch.setattr(sharding, "place_pieces", lambda *a: placed.append(1) or place(*a))
    mesh, test = sharding.make_mesh(2), rows_of(9, 8, seed=1)
    bank, other = unit_bank(rows_of(60, 8)), unit_bank(rows_of(60, 8, seed=2))
    run = streamed(TopK(3), block=5, memory=30 * 9 * 4, mesh=mesh)
    agree(TopK(3), run(bank, test), products(bank, test))
    assert len(placed) == 3
    agree(TopK(3), run(bank, test), products(bank, test))
    assert len(placed) == 3
    agree(TopK(3), run(other, test), products(other, test))
    assert len(placed) == 6
    run = streamed(TopK(3), block=5, memory=30 * 9 * 4 - 1, mesh=mesh)
    placed.clear()
    for _ in range(2):
        agree(TopK(3), run(bank, test), products(bank, test))
    assert len(placed) == 2 * 3 * 3  # chunks of 10 rows each


def test_a_bank_is_no_copy(tmp_path):
    values = rows_of(5, 4)
    assert unit_bank(values).rows is values
    values.tofile(tmp_path / "bank")
    mapped = np.memmap(tmp_path / "bank", np.float32, "r", shape=(5, 4))
    assert np.shares_memory(unit_bank(mapped).rows, mapped)
    unit = unit_bank(values * 1e15)  # whose squares float32 cannot hold
    np.testing.assert_allclose(np.linalg.norm(unit.rows * unit.scales[:, None], axis=1), 1, 1e-6)


@pytest.mark.parametrize("reduction", [LogSumExp(0.1), TopK(5)])
def test_exports_with_any_number_of_rows(reduction):
    bank = jax.tree.map(jnp.asarray, unit_bank(rows_of(33, 8)))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8"), jnp.float32)
    score = jax.jit(lambda test: reduce(bank, test, reduction, block=10))
    artefact = export.export(score)(shape)
    for count in (1, 12):
        test = rows_of(count, 8, seed=count)
        agree(reduction, jax.device_get(artefact.call(test)), products(bank, test))


@pytest.mark.parametrize("reduction", [LogSumExp(0.04), TopK(20)])
def test_temporary_memory_does_not_grow_with_the_bank(reduction):
    def temporary(size):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((size, 16), (size,))]
        test = jax.ShapeDtypeStruct((256, 16), jnp.float32)
        compute = jax.jit(lambda bank, test: reduce(bank, test, reduction, block=512))
        compiled = compute.lower(Bank(*shapes), test).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1_024_000) <= temporary(2_048)


PEAK = """
import sys
import numpy as np
from ood_jax import config, scorers, sharding
from ood_jax.types import Features

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

settings = config.base("dino_negatives").score
with settings.unlocked():
    settings.block = 512
    settings.neighbour = 5
scorer = scorers.build(sys.argv[1], settings, sharding.make_mesh(2))
test = Features(np.random.default_rng(0).standard_normal((512, 128), np.float32))
for size in (20_000, 20_000, 200_000):
    bank = np.empty((size, 128), np.float32)
    for start in range(0, size, 1000):
        bank[start : start + 1000] = np.random.default_rng(start).standard_normal((1000, 128))
    before = memory("VmHWM")
    assert size < 100_000 or before - memory("VmRSS") < 8, "the peak was somewhere else"
    scorer.streamed(scorer.fit(Features(bank)), test)
    print(memory("VmHWM") - before)
    del bank
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["exp_cosine", "knn"])
def test_peak_memory_at_ten_times_the_bank(name):
    """A bank of 98 MiB in place: scoring takes blocks and chunks beside it, no second bank."""
    done = subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = [float(line) for line in done.stdout.split()]
    assert grown[2] < 24, grown
