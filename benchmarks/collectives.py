"""What crosses between devices in a training step, and what each of them computes and holds.

    python benchmarks/collectives.py --config=configs/dino_negatives.py:dino,cifar10 \\
        [--config.key=value ...] [--devices=8]

Compiles the recipe's step for simulated devices, on stand-in images, and runs nothing: for one
device, for `data` alone, for fsdp of all arrays, and for the mesh.model and mesh.rules of the
config if it has any. Of each: floating-point operations, bytes of the state and bytes of temporary
arrays a device, with their share of one device's; then every kind of collective with its count and
the bytes of its results on a device. XLA counts the body of a loop once, and an operation that runs
in a library not at all; the collectives of a GPU or TPU may be merged or split otherwise.
"""

import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
FSDP = (".*=fsdp",)
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


class Cost(NamedTuple):
    """Of one device: floating-point operations, bytes, {kind: (count, bytes of the results)}."""

    flops: float
    state: int
    temporary: int
    collectives: dict[str, tuple[int, int]]


class Collective(NamedTuple):
    """size: bytes of the results on one device. members: the first group of devices in it."""

    kind: str
    size: int
    members: tuple[int, ...]


def each_collective(hlo: str) -> list[Collective]:
    """Every collective in the text of a compiled module, in order; a loop's once.

    Of a collective-permute the members are the first two devices that exchange something.

    Raises:
      ValueError: groups of devices written in a way that is not known here.
    """
    header = re.search(r"num_partitions=(\d+)", hlo)
    devices = int(header[1]) if header else 1
    found = []
    for result, kind, start, rest in re.findall(rf" = (.*?) ({KINDS})(-start)?\((.*)", hlo):
        arrays = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", result)
        if start and kind in ("all-gather", "collective-permute"):  # (operands, results, contexts)
            arrays = [a for a in arrays if a != ("u", "32", "")]
            arrays = arrays[len(arrays) // 2 :]
        size = sum(
            math.prod(map(int, filter(None, shape.split(",")))) * max(int(bits or 8) // 8, 1)
            for _, bits, shape in arrays
        )
        found.append(Collective(kind, size, members(rest, devices)))
    return found


def members(attributes: str, devices: int) -> tuple[int, ...]:
    """The first group in the attributes of a collective among `devices` devices.

    Raises:
      ValueError: neither a list, nor an iota, nor axes of a mesh.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        moves = [tuple(map(int, p.split(","))) for p in re.findall(r"\{(\d+,\d+)", pairs[0])]
        return next((move for move in moves if move[0] != move[1]), (0,))
    text = attributes.partition("replica_groups=")[2]
    if listed := re.match(r"\{(?:\{([\d,]*)\}.*)?\}", text):
        return tuple(map(int, listed[1].split(","))) if listed[1] else tuple(range(devices))
    if iota := re.match(rf"\[\d+,(\d+)\]<={IOTA}", text):
        return tuple(_iota(iota[2], iota[3])[: int(iota[1])])
    if mesh := re.match(rf"mesh\[([^\]]*)\](?:, device_ids=\({IOTA}\))? \{{([^}}:]*)\}}", text):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        inner = re.findall(r"'(\w+)'", mesh[4])
        names = [name for name in sizes if name not in inner] + inner
        order = ",".join(str(list(sizes).index(name)) for name in names)
        places = _iota(",".join(map(str, sizes.values())), order)
        numbers = _iota(mesh[2], mesh[3]) if mesh[2] else range(devices)
        return tuple(numbers[i] for i in places[: math.prod(sizes[name] for name in inner)])
    raise ValueError(f"groups of devices that this cannot read: {text[:80]!r}")


def _iota(shape: str, order: str | None) -> list[int]:
    """0, 1, ... as an array of `shape`, its axes put in `order`, in a row again."""
    import numpy as np

    sizes = tuple(map(int, shape.split(",")))
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(tuple(map(int, order.split(","))) if order else None).ravel().tolist()


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """{kind: (how many, bytes of their results on one device)} in the text of a compiled module."""
    found: dict[str, tuple[int, int]] = {}
    for one in each_collective(hlo):
        count, total = found.get(one.kind, (0, 0))
        found[one.kind] = count + 1, total + one.size
    return found


def traced(config: Any) -> tuple[Any, Any]:
    """(shapes and places of the state, the traced step) of `config`; nothing is computed."""
    import jax
    import jax.numpy as jnp

    from ood_jax import sharding
    from ood_jax.train import abstract_state, jitted_step, prepare

    run = prepare(config)
    state = abstract_state(run)
    batch, size = config.train.batch, config.data.size
    split = sharding.batch_sharding(run.mesh)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8, sharding=split)
    numbers = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    host = {"image": images, "index": numbers, "label": numbers}
    if config.data.auxiliary:
        host |= {"auxiliary": images, "auxiliary_index": numbers}
    step: Any = jitted_step(run)
    return state, step.trace(state, host)


def state_bytes(state: Any) -> int:
    """What one device holds of `state`."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(state)
    )


def cost(config: Any) -> Cost:
    """What the compiled step of `config` costs on its mesh."""
    state, step = traced(config)
    compiled = step.lower().compile()
    return Cost(
        compiled.cost_analysis()["flops"],
        state_bytes(state),
        compiled.memory_analysis().temp_size_in_bytes,
        collectives(compiled.as_text()),
    )


def stand_in(config: Any, folder: Path) -> None:
    """Puts images that nobody reads in the place of the recipe's sets."""
    import numpy as np

    count = 2048
    labels = np.arange(count) % max(config.head.outputs, 1)
    path = folder / "images.npz"
    np.savez(path, images=np.zeros((count, 8, 8, 3), np.uint8), labels=labels)
    config.data.train = f"npz:{path}"
    config.data.auxiliary = config.data.auxiliary and f"npz:{path}"
    config.model.weights = ""


def meshes(config: Any, devices: int) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """{name: (train.devices, mesh.model, mesh.rules)}: data, fsdp, and the config's own if any."""
    own = (config.mesh.model, config.mesh.rules)
    named = {"data": (devices, 1, ()), "fsdp": (devices, 1, FSDP)}
    return named if own == (1, ()) else named | {"config": (devices, *own)}


def report(config: Any, devices: int) -> None:
    """Prints the table of one stage."""
    layouts = {"one device": (1, 1, ())} | meshes(config, devices)
    one: Cost | None = None
    for name, (config.train.devices, config.mesh.model, config.mesh.rules) in layouts.items():
        found = cost(config)
        one = one or found
        print(name)
        for field in ("flops", "state", "temporary"):
            value, whole = getattr(found, field), getattr(one, field)
            print(f"    {field:20}{value:24,.0f}{value / whole:8.3f} of one device's")
        for kind, (count, size) in sorted(found.collectives.items()):
            print(f"    {kind:20}{count:6,}{size:18,} bytes", flush=True)


def simulate(devices: int) -> None:
    """So many devices on the CPU, for whom nothing is optimised; before jax is imported."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"] = flags, "cpu"


def main(argv: list[str]) -> None:
    """Prints a table for every stage of the recipe."""
    asked = [int(a.split("=")[1]) for a in argv if a.startswith("--devices=")] or [8]
    simulate(asked[0])
    from ood_jax.config import stages_of
    from ood_jax.recipe import load

    config = load([a for a in argv if a.startswith("--config")])
    with tempfile.TemporaryDirectory() as folder, config.unlocked():
        for stage, own in stages_of(config).items():
            print(f"{config.name} {stage}: batch {own.train.batch}, {asked[0]} devices")
            stand_in(own, Path(folder))
            report(own, asked[0])


if __name__ == "__main__":
    main(sys.argv[1:])
