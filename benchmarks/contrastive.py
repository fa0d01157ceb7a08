"""NT-Xent in blocks beside the plain form: time and memory of value and gradient, as ratios.

    python benchmarks/contrastive.py [--images=2048,4096] [--width=128] [--block=256] [--rounds=5]

Embeddings [images, 2, width], on all of this process's devices with what ood_jax.main sets on a CPU
(one XLA device a core, huge pages). Beside optax.losses.ntxent at a size of its own, as it makes an
array of all pairs x width, and on one device: over two CPU devices jax 0.10.2 computes it wrong.
Memory is what XLA reserves on a device beside arguments and results. All contenders of a table must
agree. Medians of alternated runs.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def table(options: argparse.Namespace, images: int, devices: int, optax: bool) -> None:
    """Seconds and MB of each contender, and how many times the first's; devices 0 = all.

    Raises:
      ValueError: two contenders do not find the same loss or gradient.
    """
    import jax
    import numpy as np

    from ood_jax import sharding

    mesh = sharding.make_mesh(devices)
    values = np.random.default_rng(0).standard_normal((images, 2, options.width), np.float32)
    z = jax.device_put(values, sharding.batch_sharding(mesh))
    losses = contenders(mesh, options.block) | ({"optax": of_optax} if optax else {})
    steps = {n: jax.jit(jax.value_and_grad(f)).lower(z).compile() for n, f in losses.items()}
    first, *_ = steps
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    found: dict[str, Any] = {}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            found[name] = jax.block_until_ready(step(z))
            if number:  # the first round touches memory for the first time
                seconds[name].append(time.perf_counter() - start)
    pairs = (2 * images) ** 2 * 4 / 2**20
    print(f"{images:,} x 2 x {options.width}, {mesh.size} devices: all pairs take {pairs:,.0f} MB")
    memory = {name: _reserved(step) for name, step in steps.items()}
    times = {name: statistics.median(each) for name, each in seconds.items()}
    for name in steps:
        for a, b in zip(found[name], found[first], strict=True):
            if not np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()):
                raise ValueError(f"{name} finds another loss or gradient than {first}")
        print(
            f"  {name:12s} {times[name]:8.3f} s {times[first] / times[name]:6.2f} x as fast"
            f" {memory[name]:10,.1f} MB {memory[name] / memory[first]:8.3f} x the memory"
        )
    print(flush=True)


def _reserved(compiled: Any) -> float:
    """MB that a compiled function reserves on a device beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def contenders(mesh: Any, block: int) -> dict[str, Callable[[Any], Any]]:
    """Embeddings [B, 2, P] -> mean loss: the plain form and the one in blocks."""
    from ood_jax import sharding
    from ood_jax.losses.contrastive import nt_xent, whole_batch

    blocked = sharding.each_row(mesh, block)
    return {
        "plain": lambda z: nt_xent(z, temperature=0.5, rows=whole_batch).mean(),
        f"blocks {block}": lambda z: nt_xent(z, temperature=0.5, rows=blocked).mean(),
    }


def of_optax(z: Any) -> Any:
    """The same mean."""
    import jax.numpy as jnp
    import optax

    images = jnp.repeat(jnp.arange(len(z)), 2)
    return optax.losses.ntxent(z.reshape(-1, z.shape[-1]), images, temperature=0.5)


def _recipe() -> None:
    """Starts anew with what ood_jax.main sets, which must be there before jax and malloc are."""
    wanted = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={os.cpu_count()}",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if any(name not in os.environ for name in wanted):
        os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main(argv: list[str]) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", default="2048,4096", help="a batch, by commas")
    add("--optax-images", type=int, default=256, help="of the table with optax; 0 = none")
    add("--width", type=int, default=128, help="of an embedding")
    add("--block", type=int, default=256, help="anchors at once on a device")
    add("--rounds", type=int, default=5, help="timed runs of each contender")
    options = parser.parse_args(argv)
    _recipe()
    for images in map(int, options.images.split(",")):
        table(options, images, devices=0, optax=False)
    if options.optax_images:
        table(options, options.optax_images, devices=1, optax=True)


if __name__ == "__main__":
    main(sys.argv[1:])
