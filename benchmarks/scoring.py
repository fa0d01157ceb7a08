"""How fast and how large scoring is beside what a user would pick instead: ratios, alternated.

    python benchmarks/scoring.py [--bank=10000,100000,1000000] [--test=2000] [--width=384] ...

Exp-cosine and KNN against blocked NumPy and scikit-learn, and against PyTorch and faiss where they
are installed, at every bank size, so that the slope shows; peak memory of each in a fresh process
(Linux), beside what bank and tests take; class-wise Mahalanobis; metrics against scikit-learn's.
All contenders of a table must agree. A table's process runs with what ood_jax.main sets on a CPU:
one XLA device a core, huge pages. Medians; ratios travel between machines, seconds do not.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM = 32_768  # bank rows that compile all that a larger bank needs


def vectors(count: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors, float32 [count, width]."""
    found = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def alternated(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one round of all after another; the first round does not count.

    Raises:
      ValueError: two contenders do not find the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: list[Any] = []
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            result = run()
            if number:
                seconds[name].append(time.perf_counter() - start)
            elif result is not None:
                results.append(result)
                if not np.allclose(result, results[0], rtol=1e-3, atol=1e-3):
                    raise ValueError(f"{name} finds other scores than {next(iter(contenders))}")
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, seconds: dict[str, float], extra: dict[str, str]) -> None:
    """A table: seconds, and how many times as fast as the first; then ood_jax to the fastest."""
    first = next(iter(seconds.values()))
    print(title)
    for name, value in seconds.items():
        print(f"  {name:22s} {value:8.3f} s {first / value:6.2f} x{extra.get(name, '')}")
    fastest = min(value for name, value in seconds.items() if name != "ood_jax")
    print(f"  ood_jax to the fastest other: {fastest / seconds['ood_jax']:.2f} x", flush=True)


def bank_tables(options: argparse.Namespace) -> None:
    """Exp-cosine and KNN at every bank size, and how time grows with it."""
    for score in ("exp_cosine", "knn"):
        each: dict[int, float] = {}
        for size in options.bank:
            seconds = _child(options, "time", score, size)
            peaks = {
                name: f"   peak +{_child(options, 'peak', score, size, name)['MB']:,.0f} MB"
                for name in seconds
                if options.memory
            }
            held = (size + options.test) * options.width * 4 / 2**20
            title = f"{score}, {options.test:,} x {size:,} x {options.width}: {held:,.0f} MB"
            show(title, seconds, peaks)
            each[size] = seconds["ood_jax"] / size * 1e9 / options.test
        slope = ", ".join(f"{size:,}: {value:.3f} ns" for size, value in each.items())
        print(f"{score}, ood_jax, time a pair: {slope}\n")


def mahalanobis_table(options: argparse.Namespace) -> None:
    """Class-wise, 10 classes: fit on 50 images of each dimension and class, and scoring."""
    import scoring_peers

    rng = np.random.default_rng(0)
    labels = np.arange(options.train) % 10
    shape = (options.train, options.mahalanobis_width)
    train = rng.standard_normal(shape, np.float32) + labels[:, None].astype(np.float32) / 10
    test = rng.standard_normal((options.train // 5, shape[1]), np.float32)
    contenders = scoring_peers.mahalanobis(train, labels, test)
    seconds = alternated({n: prepare() for n, prepare in contenders.items()}, options.rounds)
    show(f"mahalanobis, fit {shape[0]:,} x {shape[1]}, score {len(test):,}", seconds, {})
    if "torch Cholesky" in seconds:
        print(f"  ood_jax to torch: {seconds['torch Cholesky'] / seconds['ood_jax']:.2f} x")
    print()


def metrics_table(options: argparse.Namespace) -> None:
    """On scores half of which are OOD."""
    from sklearn import metrics as sk

    from ood_jax import metrics

    rng, half = np.random.default_rng(0), options.scores // 2
    inside, outside = rng.normal(0, 1, half), rng.normal(1, 1, half)
    out, scores = np.repeat([0, 1], half), np.append(inside, outside)

    def all_of_sklearn() -> None:
        sk.roc_auc_score(out, scores)
        sk.average_precision_score(out, scores)
        sk.average_precision_score(1 - out, -scores)
        for labels, values in ((out, scores), (1 - out, -scores)):
            false, true, _ = sk.roc_curve(labels, values, drop_intermediate=False)
            false[np.argmax(true >= 0.95)]
            np.min(0.5 * (1 - true) + 0.5 * false)

    def all_of_ours() -> None:
        metrics.all_metrics(inside, outside)

    auroc: dict[str, Callable[[], Any]] = {
        "sklearn": lambda: sk.roc_auc_score(out, scores),
        "ood_jax": lambda: metrics.auroc(inside, outside),
    }
    both: dict[str, Callable[[], Any]] = {"sklearn": all_of_sklearn, "ood_jax": all_of_ours}
    for name, pair in (("AUROC", auroc), ("all metrics", both)):
        show(f"{name} of {options.scores:,} scores", alternated(pair, options.rounds), {})


def time_bank(options: argparse.Namespace, score: str, size: int) -> dict[str, float]:
    """Seconds of each contender of `score`."""
    import scoring_peers

    bank, test = vectors(size, options.width, 0), vectors(options.test, options.width, 1)
    contenders = getattr(scoring_peers, score)(bank, test)
    return alternated({n: prepare() for n, prepare in contenders.items()}, options.rounds)


def peak(options: argparse.Namespace, score: str, size: int, name: str) -> dict[str, float]:
    """MB that the contender adds at its peak to a process that holds libraries, bank and tests."""
    import scoring_peers

    bank, test = vectors(size, options.width, 0), vectors(options.test, options.width, 1)
    contenders = getattr(scoring_peers, score)
    contenders(bank[:WARM], test)[name]()()
    ctypes.CDLL(None).malloc_trim(0)  # what is free counts as new when it is taken again
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak begins anew
    before = _status("VmRSS")
    contenders(bank, test)[name]()()
    return {"MB": (_status("VmHWM") - before) / 1024}


def _status(key: str) -> int:
    """A size of this process, in kB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


def _child(options: argparse.Namespace, *job: object) -> dict[str, float]:
    """What this file prints for one job, in a process of its own."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("test", "width", "rounds")]
    command = [sys.executable, os.path.abspath(__file__), *flags, "--job", *map(str, job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    pairs = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return {name: float(value) for name, value in pairs}


def _recipe() -> None:
    """Starts anew with what ood_jax.main sets, which must be there before jax and malloc are."""
    wanted = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={os.cpu_count()}",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if any(name not in os.environ for name in wanted):
        os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main(argv: list[str]) -> None:
    """Prints the tables; with --job what one of their rows needs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bank", type=_sizes, default=[10_000, 100_000, 1_000_000], help="bank sizes, by commas")
    add("--test", type=int, default=2_000, help="test rows")
    add("--width", type=int, default=384, help="of bank and tests")
    add("--train", type=int, default=50_000, help="Mahalanobis: images; a fifth as many are scored")
    add("--mahalanobis-width", type=int, default=512)
    add("--scores", type=int, default=1_000_000, help="scores that metrics are made of")
    add("--rounds", type=int, default=3, help="timed runs of each contender")
    add("--memory", action="store_true", help="peak memory too (Linux)")
    add("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    _recipe()
    if options.job:
        job, score, size, *name = options.job
        run: Callable[..., dict[str, float]] = time_bank if job == "time" else peak
        for key, value in run(options, score, int(size), *name).items():
            print(key, value)
        return
    bank_tables(options)
    mahalanobis_table(options)
    metrics_table(options)


if __name__ == "__main__":
    main(sys.argv[1:])
