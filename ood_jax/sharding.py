"""The one place that knows devices: the mesh, how batches and states lie on it, what crosses it.

Parallelism is `jax.jit` over global arrays (what `pjit` used to be): losses see the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ood_jax.types import Array, PyTree

DATA = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh with the axis `data` over the first `devices` of all processes' devices; 0 = all.

    Raises:
      ValueError: more devices than there are.
    """
    have = jax.devices()
    if not 0 <= devices <= len(have):
        raise ValueError(
            f"train.devices = {devices}: this run has {len(have)} devices; use 0 for all"
        )
    count = devices or len(have)
    return jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,), devices=have[:count])


def local_mesh() -> Mesh:
    """A mesh of this process's first device alone: what it computes there, no other waits for."""
    return jax.make_mesh(
        (1,), (DATA,), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1]
    )


def uses_host_memory(mesh: Mesh) -> bool:
    """Are the devices the host's own cores, so that what lies on a device is in memory twice?"""
    return mesh.devices.flat[0].platform == "cpu"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 of an array split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Arrays on the host, the same in every process -> the same arrays, whole on every device."""
    everywhere = replicated(mesh)

    def place(x: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(everywhere, np.asarray(x), np.shape(x))

    return jax.tree.map(place, tree)


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> arrays of the global batch, axis 0 over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def place_pieces(mesh: Mesh, piece: Callable[[int], Array]) -> jax.Array:
    """Rows that differ by device, all of one shape [R, ...] -> [devices * R, ...], one piece each.

    piece: number of a device -> its rows; asked for this process's devices only. Memory of the host
    may be shared, not copied: it must not change while the array lives.
    """
    mine = [
        jax.device_put(piece(d), device, may_alias=True)
        for d, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    shape = (mine[0].shape[0] * mesh.size, *mine[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, batch_sharding(mesh), mine)


def on_each_device(mesh: Mesh, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """function(own, shared) -> own, on every device with its rows of `own` and all of `shared`.

    Nothing crosses between devices.
    """
    split, whole = PartitionSpec(DATA), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False
    )


def each_row(mesh: Mesh, block: int) -> Callable[..., PyTree]:
    """rows(function, tree): function(one row's leaves, all rows' leaves) of every row, in blocks.

    Leaves [R, ...], R divisible by the mesh -> [R, ...]. Each device takes its own rows, `block` at
    once, against all rows, which it gathers: the transpose brings their gradients home. Backward
    computes a block again, so that nothing of size [R, R] is ever kept. Under jit; `function` must
    close over no array.

    Raises:
      ValueError: a block below 1.
    """
    if block < 1:
        raise ValueError(f"block = {block} rows at once: use 1 or more")

    def rows(function: Callable[[PyTree, PyTree], PyTree], own: PyTree) -> PyTree:
        everyone = own
        if mesh.size > 1:
            everyone = jax.lax.all_gather(own, DATA, tiled=True)
        one = jax.checkpoint(lambda row: function(row, everyone), prevent_cse=False)
        return jax.lax.map(one, own, batch_size=block)

    def on_mesh(function: Callable[[PyTree, PyTree], PyTree], tree: PyTree) -> PyTree:
        if mesh.size == 1:
            return rows(function, tree)
        return on_each_device(mesh, lambda own, _: rows(function, own))(tree, ())

    return on_mesh


def check_batch(mesh: Mesh, batch: int, micro_batches: int = 1) -> None:
    """Refuses a batch that does not divide over the mesh.

    Raises:
      ValueError: naming the nearest batch sizes that do.
    """
    unit = mesh.size * micro_batches
    if batch < unit or batch % unit:
        low = max(batch // unit, 1) * unit
        raise ValueError(
            f"batch {batch} does not divide over {mesh.size} devices x {micro_batches}"
            f" micro-batches: use {low} or {low + unit}"
        )


def micro_batches(batch: PyTree, count: int) -> PyTree:
    """[B, ...] -> [count, B / count, ...], each micro-batch spread over all devices."""

    def split(x: Any) -> Any:
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
