"""The one place that knows devices: the mesh, how batches and states lie on it, what crosses it.

Parallelism is `jax.jit` over global arrays (what `pjit` used to be): losses see the whole batch.
A mesh has two axes. A batch is split over `data` and the same on all devices of `model`, over which
large arrays of the state may be split (layout.py).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ood_jax.types import Array, PyTree

DATA, MODEL = "data", "model"


def make_mesh(devices: int = 0, model: int = 1) -> Mesh:
    """A mesh over the first `devices` of all processes' devices, 0 = all; `model` of them an axis.

    Raises:
      ValueError: more devices than there are; a `model` that does not divide them, or that would
        split an array between processes, each of which reads its own rows of a batch.
    """
    have = jax.devices()
    if not 0 <= devices <= len(have):
        raise ValueError(
            f"train.devices = {devices}: this run has {len(have)} devices; use 0 for all"
        )
    count = devices or len(have)
    if model < 1 or count % model:
        divisors = [str(n) for n in range(1, count + 1) if count % n == 0]
        raise ValueError(
            f"mesh.model = {model} does not divide the {count} devices: use {' or '.join(divisors)}"
        )
    mesh = _mesh(have[:count], model)
    if any(len({device.process_index for device in row}) > 1 for row in mesh.devices):
        raise ValueError(
            f"mesh.model = {model} spans processes of {len(jax.local_devices())} devices each: use"
            " a divisor of that"
        )
    return mesh


def local_mesh() -> Mesh:
    """A mesh of this process's first device alone: what it computes there, no other waits for."""
    return _mesh(jax.local_devices()[:1], 1)


def data_parallel(mesh: Mesh) -> Mesh:
    """The same devices, all on `data`: what is computed row by row has no use for `model`."""
    types = (AxisType.Auto,) * 2
    return Mesh(mesh.devices.reshape(-1, 1), (DATA, MODEL), axis_types=types)


def _mesh(devices: list[jax.Device], model: int) -> Mesh:
    shape, types = (len(devices) // model, model), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=types, devices=devices)


def parts(mesh: Mesh) -> int:
    """In how many parts a batch lies on the mesh."""
    return mesh.shape[DATA]


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
    """Arrays on the host, the same in every process, or on the devices -> whole on every device."""
    everywhere = replicated(mesh)
    return place(tree, jax.tree.map(lambda _: everywhere, tree))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays on the host, the same in every process, or on devices -> laid out as `shardings` say.

    No device receives more than its own part.
    """

    def put(x: Any, where: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.device_set == where.device_set:
            return jax.device_put(x, where)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda part: host[part])

    return jax.tree.map(put, tree, shardings)


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> arrays of the global batch, axis 0 over `data`."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def place_pieces(mesh: Mesh, piece: Callable[[int], Array]) -> jax.Array:
    """Rows that differ by part of a batch, all of one shape [R, ...] -> [parts * R, ...].

    piece: number of a part -> its rows; asked for this process's parts only. Memory of the host
    may be shared, not copied: it must not change while the array lives.
    """
    mine = [
        jax.device_put(piece(number), device, may_alias=True)
        for (number, _), device in np.ndenumerate(mesh.devices)
        if device.process_index == jax.process_index()
    ]
    shape = (mine[0].shape[0] * parts(mesh), *mine[0].shape[1:])
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

    Leaves [R, ...], R divisible by the mesh's parts -> [R, ...]. Each device takes its own rows,
    `block` at once, against all rows, which it gathers: the transpose brings their gradients home.
    Backward computes a block again, so that nothing of size [R, R] is ever kept. Under jit;
    `function` must close over no array.

    Raises:
      ValueError: a block below 1.
    """
    if block < 1:
        raise ValueError(f"block = {block} rows at once: use 1 or more")

    def rows(function: Callable[[PyTree, PyTree], PyTree], own: PyTree) -> PyTree:
        everyone = own
        if parts(mesh) > 1:
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
    unit = parts(mesh) * micro_batches
    if batch < unit or batch % unit:
        low = max(batch // unit, 1) * unit
        raise ValueError(
            f"batch {batch} does not divide over {_parts_of(mesh)} x {micro_batches}"
            f" micro-batches: use {low} or {low + unit}"
        )


def _parts_of(mesh: Mesh) -> str:
    one = mesh.shape[MODEL]
    return f"{mesh.size} devices" if one == 1 else f"{parts(mesh)} groups of {one} devices"


def micro_batches(batch: PyTree, count: int) -> PyTree:
    """[B, ...] -> [count, B / count, ...], each micro-batch spread over all devices."""

    def split(x: Any) -> Any:
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
