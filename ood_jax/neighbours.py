"""Distances to k-th nearest neighbours among unit vectors, for any k, block by block.

The k-th largest cosine is found by counting how many lie above a number, never by sorting: at
k = 300 `lax.top_k` takes ten times as long on a CPU.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.scorers.cosine import unit
from ood_jax.scorers.rows import padded, rounded
from ood_jax.types import Array

BITS = 32
QUERIES = 512  # compared with the bank in one product, at most
HOST_CELLS, CELLS = 1 << 17, 1 << 26  # numbers counted at once: those of a core's cache, of a GPU


def kth_largest(rows: Array, k: int) -> jax.Array:
    """The k-th largest number of each row, float32 [N, M] -> [N]; exact, ties count. k <= M.

    Halves the range of bit patterns, whose order as whole numbers is that of the numbers.
    """
    bits = lax.bitcast_convert_type(jnp.asarray(rows, jnp.float32), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_: Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # rounded up; no overflow
        enough = jnp.sum((ordered >= middle[:, None]).astype(jnp.float32), axis=1) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    found, _ = lax.fori_loop(0, BITS, halve, (ordered.min(1), ordered.max(1)))
    return lax.bitcast_convert_type(jnp.where(found < 0, found ^ 0x7FFFFFFF, found), jnp.float32)


def kth_distances(
    bank: Array, queries: Array, *, k: int, memory: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Squared distance of each query to its k-th nearest bank row, both taken as x / |x|.

    A query that is in the bank is its own first neighbour, as in OAML's and NPOS's code (faiss),
    whose distances are squared too.

    Args:
      bank: float32 [M, D], whole on every device. queries: [N, D], split over the mesh.
      k: 1 to M. memory: bytes of a block of cosines, [queries at once, M], on a device. mesh: None
        = this process's first device.

    Returns:
      float32 [N], in [0, 4].

    Raises:
      ValueError: another k, or widths that differ.
    """
    if np.shape(bank)[1:] != np.shape(queries)[1:]:
        raise ValueError(f"queries {list(np.shape(queries))} for a bank {list(np.shape(bank))}")
    if not 1 <= k <= len(bank):
        raise ValueError(f"neighbour {k} of a bank of {len(bank)}: use 1 to {len(bank)}")
    mesh = sharding.data_parallel(mesh) if mesh else sharding.local_mesh()
    size = rounded(len(bank))
    block = max(1, min(QUERIES, memory // (4 * size), -(-len(queries) // sharding.parts(mesh))))
    unit_rows = block * sharding.parts(mesh)
    rows = padded(
        np.asarray(queries, np.float32), -(-len(queries) // unit_rows) * unit_rows, slice(None)
    )
    shared = (padded(np.asarray(bank, np.float32), size, slice(None)), np.int32(len(bank)))
    found = _compiled(k, block, cells(mesh), mesh)(rows, shared)
    return np.asarray(jax.device_get(found))[: len(queries)]


def boundary(distances: np.ndarray, select: int) -> np.ndarray:
    """The `select` points of the largest distances [N], the largest first: int64 [select]."""
    return np.argsort(-np.asarray(distances), kind="stable")[:select]


def cells(mesh: Mesh) -> int:
    """How many numbers a device of the mesh counts fastest at once."""
    return HOST_CELLS if sharding.uses_host_memory(mesh) else CELLS


def mapped(function: Any, rows: Any, at_once: int) -> Any:
    """`lax.map` over rows, some at once; one by one a `lax.cond` in `function` saves its work."""
    return lax.map(function, rows) if at_once <= 1 else lax.map(function, rows, batch_size=at_once)


@lru_cache
def _compiled(k: int, block: int, many: int, mesh: Mesh) -> Any:
    def own(rows: Array, shared: tuple[Array, Array]) -> jax.Array:
        bank, count = shared
        towards = unit(bank)
        counts = jnp.arange(bank.shape[0]) < count

        def of_block(queries: Array) -> jax.Array:
            cosines = jnp.matmul(unit(queries), towards.T, precision=lax.Precision.HIGHEST)
            cosines = jnp.where(counts, cosines, -jnp.inf)
            kth = partial(_kth_of_one, k=k)
            return mapped(kth, cosines, many // cosines.shape[1])

        blocks = lax.map(of_block, rows.reshape(-1, block, rows.shape[1]))
        return jnp.maximum(2 - 2 * blocks.reshape(-1), 0.0)

    return jax.jit(sharding.on_each_device(mesh, own))


def _kth_of_one(row: Array, k: int) -> jax.Array:
    return kth_largest(row[None], k)[0]
