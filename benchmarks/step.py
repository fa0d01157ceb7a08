"""How fast a recipe's training step is, and what the CPU recipe and the data feed cost or give.

    python benchmarks/step.py --config=configs/quickstart.py [--config.key=value ...] [--steps=20]

On a CPU: the step with neither, with one XLA device a core, and with that and huge pages (what
ood_jax.main sets), in alternated processes; the ratios are to the first. Everywhere: steps fed by
the pipeline over steps on one fixed batch, in one process. Prints medians; ratios travel between
machines, absolute figures do not.
"""

import json
import os
import subprocess
import sys
import time

ROUNDS = 3


def variants() -> dict[str, dict[str, str]]:
    """Environment of each variant; without a choice to make, one."""
    cores = os.cpu_count() or 1
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={cores}"}
    pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    return {
        "as it is": {"XLA_FLAGS": ""},
        f"{cores} devices": devices,
        f"{cores} devices, huge pages": devices | pages,
    }


def measure(argv: list[str], steps: int) -> dict[str, float]:
    """Seconds a step of this process: fed by the pipeline, and on one fixed batch."""
    import jax
    import numpy as np

    from ood_jax import sharding
    from ood_jax.data.pipeline import train_batches
    from ood_jax.recipe import load
    from ood_jax.train import init_state, jitted_step, prepare

    run = prepare(load(argv))
    config = run.config
    step = jitted_step(run)
    batches = train_batches(
        run.train, run.auxiliary, batch=config.train.batch, size=config.data.size, seed=0
    )

    def fed():
        host = next(batches)
        host.pop("skipped")
        return sharding.global_batch(run.mesh, host)

    fixed, state = fed(), init_state(run)
    for _ in range(2):
        state, _ = step(state, fixed)
    seconds: dict[str, list[float]] = {"fed": [], "fixed": []}
    for _ in range(steps):
        for name in seconds:
            start = time.perf_counter()
            state, _ = step(state, fed() if name == "fed" else fixed)
            jax.block_until_ready(state)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def main(argv: list[str]) -> None:
    """Prints the table."""
    steps = [int(a.split("=")[1]) for a in argv if a.startswith("--steps=")] or [20]
    asked = [a for a in argv if a.startswith("--config")]
    if "--child" in argv:
        print(json.dumps(measure(asked, steps[0])))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, environment in variants().items():
            command = [sys.executable, __file__, "--child", f"--steps={steps[0]}", *asked]
            done = subprocess.run(
                command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
            )
            found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    base = min(r["fixed"] for r in found["as it is"])
    print(f"{'':32}{'s a step':>10}{'speed-up':>10}{'fed/fixed':>11}")
    for name, rounds in found.items():
        best = min(r["fixed"] for r in rounds)
        feed = sorted(r["fixed"] / r["fed"] for r in rounds)[len(rounds) // 2]
        print(f"{name:32}{best:10.4f}{base / best:10.2f}{feed:11.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
