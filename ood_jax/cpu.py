"""What makes XLA fast on a CPU; it must be set before jax is imported, and malloc's before start.

One XLA device a core, and huge pages for the temporary buffers that JAX otherwise faults in page by
page; benchmarks/step.py prints what each gives for a recipe.
"""

import os
import sys

_TUNABLE = "glibc.malloc.hugetlb=1"


def prepare(module: str) -> None:
    """Sets the flags, and starts the process anew once where malloc must be told.

    Does nothing where the user has set XLA_FLAGS or GLIBC_TUNABLES, and harms no accelerator.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "XLA_FLAGS" not in os.environ and cores and cores > 1:
        # 8 is what a batch is sure to divide by; collectives wait for a slow core, not forever.
        count = max(n for n in (1, 2, 4, 8) if n <= cores)
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={count}"
            " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _TUNABLE
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
