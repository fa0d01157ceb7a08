"""Rows of a train set: which belong to which class; sums over them, block by block on the mesh."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.types import Array, Features, PyTree

BLOCK = 4096  # rows on the devices at once


class Labelled(NamedTuple):
    """classes: int64 [C], the labels there are. rows: one index array a class, in their order."""

    classes: np.ndarray
    rows: tuple[np.ndarray, ...]


def labelled(features: Features, name: str) -> Labelled:
    """The rows of each class of a train set; labels below 0 are none, and numbers may have gaps.

    Raises:
      ValueError: no labels, or another number of them than of features.
    """
    if features.labels is None or (np.asarray(features.labels) < 0).all():
        raise ValueError(f"{name} needs labels of the train set: give a data.train that has them")
    labels = np.asarray(features.labels)
    if labels.shape != (len(features.features),):
        raise ValueError(
            f"labels {list(labels.shape)} for {len(features.features)} features: one an image"
        )
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    rows = np.split(order, starts[1:])
    known = int((classes < 0).sum())
    return Labelled(classes[known:].astype(np.int64), tuple(rows[known:]))


def check_width(rows: Array, width: int, whose: str = "the train set's") -> None:
    """Refuses rows [N, D] of another width; when traced, so before anything is computed.

    Raises:
      ValueError: naming both widths.
    """
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(
            f"features {list(rows.shape)} where {whose} are {width} wide: same network?"
        )


def mean_of(rows: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
    """The mean of rows[index], float64 [D], block by block; None = of all."""
    if index is None:
        return rows.mean(0, dtype=np.float64)
    starts = range(0, len(index), 1 << 16)
    sums = [rows[index[s : s + (1 << 16)]].sum(0, dtype=np.float64) for s in starts]
    return np.sum(sums, axis=0) / len(index)


def float_type() -> np.dtype:
    """What arrays are computed in: float32, and float64 where jax_enable_x64 is set."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def rounded(count: int, devices: int = 1) -> int:
    """`count` rounded up to a multiple of 8 a device, so that few shapes are compiled."""
    unit = 8 * devices
    step = max(1, (1 << (count.bit_length() - 1)) // (4 * unit)) * unit
    return -(-count // step) * step


def padded(rows: np.ndarray, size: int, index: np.ndarray | slice) -> np.ndarray:
    """rows[index] [n, ...] filled up with zeros to [size, ...], in `float_type` unless integers."""
    kind = float_type() if rows.dtype.kind == "f" else rows.dtype
    chosen = rows[index]
    if len(chosen) == size:
        return chosen.astype(kind, copy=False)
    out = np.zeros((size, *rows.shape[1:]), kind)
    out[: len(chosen)] = chosen
    return out


def summed(
    function: Callable[..., PyTree],
    arrays: tuple[np.ndarray, ...],
    mesh: Mesh,
    *shared: Any,
    index: np.ndarray | None = None,
) -> PyTree:
    """The sum of function(counts, *rows, *shared) over blocks of rows, in float64 on the host.

    Each device sums its own rows of a block. function: a top-level one, compiled once a shape; rows
    count where counts, bool [n], is true, and are zero elsewhere. arrays: [M, ...] each. index: the
    rows that are wanted; None = all.
    """
    compiled = _compiled(function, mesh)
    total = waiting = None
    for block in _blocks(arrays, mesh, index):
        # One at a time: queued collectives of simulated devices can time out.
        total = _plus(total, waiting)
        waiting = compiled(block, shared)
    return _plus(total, waiting)


def _blocks(
    arrays: tuple[np.ndarray, ...], mesh: Mesh, index: np.ndarray | None
) -> Iterator[tuple[Array, ...]]:
    """Which rows count, bool [B], and rows of each array, split over the mesh."""
    total = len(arrays[0]) if index is None else len(index)
    most = BLOCK * sharding.parts(mesh)
    for start in range(0, total, most):
        count = min(most, total - start)
        size = min(most, rounded(count, sharding.parts(mesh)))
        chosen = slice(start, start + count) if index is None else index[start : start + count]
        block = (np.arange(size) < count, *(padded(a, size, chosen) for a in arrays))
        yield tuple(place(mesh, x) for x in block)


def place(mesh: Mesh, rows: np.ndarray) -> Array:
    """Rows on the host, the same in every process -> split over the mesh."""
    if mesh.size == 1:
        return rows
    split = sharding.batch_sharding(mesh)
    return jax.make_array_from_callback(rows.shape, split, lambda part: rows[part])


@lru_cache
def _compiled(function: Callable[..., PyTree], mesh: Mesh) -> Callable[..., PyTree]:
    def own(rows: tuple[Array, ...], shared: tuple[Any, ...]) -> PyTree:
        return jax.tree.map(lambda x: x[None], function(*rows, *shared))

    def everywhere(rows: tuple[Array, ...], shared: tuple[Any, ...]) -> PyTree:
        found = sharding.on_each_device(mesh, own)(rows, shared)
        return jax.tree.map(lambda x: x.sum(0), found)

    return jax.jit(everywhere, out_shardings=sharding.replicated(mesh))


def _plus(total: PyTree, found: PyTree) -> PyTree:
    if found is None:
        return total
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(found))
    return found if total is None else jax.tree.map(np.add, total, found)
