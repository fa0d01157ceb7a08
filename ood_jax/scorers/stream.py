"""Reductions over a bank on the host, of any size: memory is bounded by chunks and blocks.

The bank goes to the devices chunk by chunk; each device reduces its own rows of a chunk, for every
block of test rows, before the next chunk comes. What the devices found is merged at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.scorers.bank import Bank, Reduction, scan
from ood_jax.scorers.cosine import unit
from ood_jax.types import Array, PyTree

TEST_BLOCK = 512  # test rows compared at once
UNIT = 128  # rows of blocks and chunks are a multiple, so that few shapes are compiled
TEST_GROUP = 64  # test blocks that are held while the bank goes by once
HOST_BLOCKS = 1  # bank blocks a chunk where devices share the host's memory


def streamed(
    reduction: Reduction,
    *,
    block: int,
    memory: int,
    mesh: Mesh,
    finish: Callable[[Any], Any] = lambda result: result,
) -> Callable[..., Any]:
    """A function (bank, test, leave_out=False) -> `reduction`'s result, leaves NumPy [N, ...].

    test: [N, D] on the host, taken as test / |test|. leave_out: True = test row n is bank row n,
    which does not count for it; int32 [N] = the numbers of these bank rows, -1 = it is none. Every
    process gives the same arrays and gets the whole result.

    Args:
      block: bank rows compared at once. memory: bytes of a bank that may lie on each device, which
        then stay there for the next call with the same bank; of a larger one, half as much lies
        there while the other half is on its way. Devices that share the host's memory never hold
        more than HOST_BLOCKS blocks. finish: applied to the result on the devices.
    """
    kept: dict[str, Any] = {}

    def run(bank: Bank, test: Array, leave_out: bool | np.ndarray = False) -> Any:
        own = np.arange(len(test), dtype=np.int32) if leave_out is True else leave_out
        size, stays = _chunk_rows(bank, block, memory, mesh)
        if kept.get("rows") is not bank.rows or kept.get("scales") is not bank.scales:
            kept.clear()
        if stays and not kept:
            kept.update(bank._asdict(), chunks=list(_chunks(bank, size, mesh)))
        group = TEST_GROUP * TEST_BLOCK
        parts = []
        for start in range(0, len(test), group):
            chunks = kept["chunks"] if stays else _chunks(bank, size, mesh)
            rows = slice(start, start + group)
            blocks = _test_blocks(test[rows], None if own is False else own[rows])
            carries = _over(chunks, blocks, reduction, block, mesh)
            parts += [
                jax.device_get(_merge(carry, reduction=reduction, finish=finish, mesh=mesh))
                for carry in carries
            ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(test)], *parts)

    return run


def _chunk_rows(bank: Bank, block: int, memory: int, mesh: Mesh) -> tuple[int, bool]:
    """Rows of a chunk on each device, in chunks nearly all full; may the bank stay there?"""
    each = -(-len(bank.rows) // sharding.parts(mesh))
    limit = HOST_BLOCKS * block
    if not sharding.uses_host_memory(mesh):
        fit = memory // (4 * bank.rows.shape[1] + 4)
        if each <= fit:
            return each, True
        limit = max(fit // 2 // block, 1) * block
    size = -(-each // -(-each // limit))
    return min(-(-size // UNIT) * UNIT, limit, each), False


def _chunks(bank: Bank, size: int, mesh: Mesh) -> Iterator[tuple[jax.Array, ...]]:
    """The bank on the devices, `size` rows each at a time: rows, scales and windows of `bank.scan`.

    Slices that would run over the end begin earlier, so that nothing is filled up and copied.
    """
    total = len(bank.rows)
    for begin in range(0, total, size * sharding.parts(mesh)):
        end = min(begin + size * sharding.parts(mesh), total)
        share = -(-(end - begin) // sharding.parts(mesh))
        low = np.minimum(begin + share * np.arange(sharding.parts(mesh)), end)
        first = np.minimum(low, total - size)
        high = np.minimum(low + share, end)
        windows = np.stack([first, low - first, high - first], 1).astype(np.int32)
        yield tuple(
            sharding.place_pieces(mesh, piece)
            for piece in (
                lambda d, first=first: bank.rows[first[d] : first[d] + size],
                lambda d, first=first: bank.scales[first[d] : first[d] + size],
                lambda d, windows=windows: windows[d : d + 1],
            )
        )


def _test_blocks(test: Array, own: np.ndarray | None) -> list[tuple[np.ndarray, Any]]:
    """[(rows float32 [n, D], their `own` int32 [n])]; the last block is filled up with zeros."""
    size = min(TEST_BLOCK, -(-len(test) // UNIT) * UNIT)

    def filled(part: Any, dtype: Any) -> np.ndarray:
        part = np.asarray(part, dtype)
        if len(part) == size:
            return part
        return np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), dtype)])

    parts = [slice(start, start + size) for start in range(0, len(test), size)]
    return [
        (filled(test[p], np.float32), None if own is None else filled(own[p], np.int32))
        for p in parts
    ]


def _over(
    chunks: Iterable[Any],
    blocks: list[tuple[np.ndarray, Any]],
    reduction: Reduction,
    block: int,
    mesh: Mesh,
) -> list[PyTree]:
    """The carry of every test block over all chunks, on the devices, not merged."""
    static = {"reduction": reduction, "mesh": mesh}
    carries = [_start(count=len(rows), **static) for rows, _ in blocks]
    for chunk in chunks:
        # The next chunk is on its way while the one before is worked on, but not the one after it.
        jax.block_until_ready(carries)
        for i, shared in enumerate(blocks):
            shared = sharding.replicate(mesh, shared)
            carries[i] = _step(carries[i], chunk, shared, block=block, **static)
            if sharding.uses_host_memory(mesh):
                jax.block_until_ready(carries[i])
        del chunk
    return carries


@partial(jax.jit, static_argnames=("count", "reduction", "mesh"))
def _start(*, count: int, reduction: Reduction, mesh: Mesh) -> PyTree:
    carry = reduction.start(count * sharding.parts(mesh))
    return lax.with_sharding_constraint(carry, sharding.batch_sharding(mesh))


@partial(jax.jit, static_argnames=("reduction", "block", "mesh"), donate_argnums=0)
def _step(
    carry: PyTree, chunk: Any, shared: Any, *, reduction: Reduction, block: int, mesh: Mesh
) -> PyTree:
    def reduce_own(own: Any, shared: Any) -> PyTree:
        carry, (rows, scales, window) = own
        test, numbers = shared
        bank = Bank(rows, scales)
        return scan(reduction, carry, bank, window[0], unit(test), numbers, block)

    return sharding.on_each_device(mesh, reduce_own)((carry, chunk), shared)


@partial(jax.jit, static_argnames=("reduction", "finish", "mesh"))
def _merge(carry: PyTree, *, reduction: Reduction, finish: Callable, mesh: Mesh) -> PyTree:
    carry = jax.tree.map(lambda x: x.reshape(sharding.parts(mesh), -1, *x.shape[1:]), carry)
    result = finish(reduction.finish(reduction.merge(carry)))
    return lax.with_sharding_constraint(result, sharding.replicated(mesh))
