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


class Cost(NamedTuple):
    """Of one device: floating-point operations, bytes, {kind: (count, bytes of the results)}."""

    flops: float
    state: int
    temporary: int
    collectives: dict[str, tuple[int, int]]


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """{kind: (how many, bytes of their results on one device)} in the text of a compiled module."""
    found: dict[str, tuple[int, int]] = {}
    for result, kind in re.findall(rf" = (.*?) ({KINDS})(?:-start)?\(", hlo):
        arrays = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", result)
        size = sum(
            math.prod(map(int, filter(None, shape.split(",")))) * max(int(bits or 8) // 8, 1)
            for _, bits, shape in arrays
        )
        count, total = found.get(kind, (0, 0))
        found[kind] = count + 1, total + size
    return found


def cost(config: Any) -> Cost:
    """What the compiled step of `config` costs on its mesh."""
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
    compiled = step.lower(state, host).compile()
    return Cost(
        compiled.cost_analysis()["flops"],
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(state)
        ),
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


def report(config: Any, devices: int) -> None:
    """Prints the table of one stage."""
    own = (config.mesh.model, config.mesh.rules)
    meshes = {"one device": (1, 1, ()), "data": (devices, 1, ()), "fsdp": (devices, 1, FSDP)}
    if own != (1, ()):
        meshes["config"] = (devices, *own)
    one: Cost | None = None
    for name, (config.train.devices, config.mesh.model, config.mesh.rules) in meshes.items():
        found = cost(config)
        one = one or found
        print(name)
        for field in ("flops", "state", "temporary"):
            value, whole = getattr(found, field), getattr(one, field)
            print(f"    {field:20}{value:24,.0f}{value / whole:8.3f} of one device's")
        for kind, (count, size) in sorted(found.collectives.items()):
            print(f"    {kind:20}{count:6,}{size:18,} bytes", flush=True)


def main(argv: list[str]) -> None:
    """Prints a table for every stage of the recipe."""
    asked = [int(a.split("=")[1]) for a in argv if a.startswith("--devices=")] or [8]
    flags = f"--xla_force_host_platform_device_count={asked[0]} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"] = flags, "cpu"
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
