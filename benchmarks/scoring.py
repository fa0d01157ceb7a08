"""How fast scoring is beside what a user would pick instead: ratios, measured in alternation.

    python benchmarks/scoring.py [--bank=50000] [--test=2000] [--width=384] [--scores=1000000]

Exp-cosine against NumPy and scikit-learn, and against PyTorch and faiss where they are installed
(faiss finds the 50 nearest, which is less than the score needs); metrics against scikit-learn's.
Every line: median seconds, and how many times as fast as `numpy naive` or scikit-learn. --memory
adds what scoring takes beside bank and tests at its peak, each in a fresh process (Linux).
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROUNDS = 5
TEMPERATURE = 0.04
BLOCK = 4096
Contender = Callable[[], object]


def vectors(count: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors, float32 [count, width]."""
    found = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def exp_cosine_contenders(bank: np.ndarray, test: np.ndarray) -> dict[str, Callable[[], Contender]]:
    """name -> what prepares the contender (its bank in its own form) and returns its scoring."""
    found = {
        "numpy naive": lambda: (
            lambda: np.log(np.mean(np.exp((test @ bank.T - 1) / TEMPERATURE), 1))
        ),
        "numpy blocked": lambda: lambda: _numpy_blocked(bank, test),
        "sklearn brute top-50": lambda: _sklearn(bank, test),
        "ood_jax": lambda: _ours(bank, test),
    }
    if importlib.util.find_spec("torch"):
        found["torch blocked"] = lambda: _torch(bank, test)
    if importlib.util.find_spec("faiss"):
        found["faiss flat top-50"] = lambda: _faiss(bank, test)
    return found


def _numpy_blocked(bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    total = np.zeros(len(test), np.float32)
    for start in range(0, len(bank), BLOCK):
        part = test @ bank[start : start + BLOCK].T
        part -= 1
        part /= TEMPERATURE
        total += np.exp(part, out=part).sum(1)
    return np.log(total / len(bank))


def _sklearn(bank: np.ndarray, test: np.ndarray) -> Contender:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(bank)
    return lambda: index.kneighbors(test)


def _torch(bank: np.ndarray, test: np.ndarray) -> Contender:
    import torch

    rows, tests = torch.from_numpy(bank), torch.from_numpy(test)

    def score() -> object:
        total = torch.zeros(len(tests))
        for start in range(0, len(rows), BLOCK):
            part = tests @ rows[start : start + BLOCK].T
            total += part.sub_(1).div_(TEMPERATURE).exp_().sum(1)
        return torch.log(total / len(rows))

    return score


def _faiss(bank: np.ndarray, test: np.ndarray) -> Contender:
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    return lambda: index.search(test, 50)


def _ours(bank: np.ndarray, test: np.ndarray) -> Contender:
    from ml_collections import ConfigDict

    from ood_jax.scorers import build
    from ood_jax.types import Features

    config = {"feature": "features", "temperature": TEMPERATURE, "block": BLOCK}
    scorer = build("exp_cosine", ConfigDict(config))
    state = scorer.fit(Features(bank))
    return lambda: scorer.score(state, Features(test))


def metric_contenders(count: int) -> dict[str, tuple[Contender, Contender]]:
    """name -> (scikit-learn, ours) on `count` scores, half of them OOD."""
    from sklearn import metrics as sk

    from ood_jax import metrics

    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, count // 2), rng.normal(1, 1, count // 2)
    out = np.repeat([0, 1], count // 2)
    scores = np.append(inside, outside)

    def all_of_sklearn() -> None:
        sk.roc_auc_score(out, scores)
        sk.average_precision_score(out, scores)
        sk.average_precision_score(1 - out, -scores)
        for labels, values in ((out, scores), (1 - out, -scores)):
            false, true, _ = sk.roc_curve(labels, values, drop_intermediate=False)
            false[np.argmax(true >= 0.95)]
            np.min(0.5 * (1 - true) + 0.5 * false)

    return {
        "AUROC": (
            lambda: sk.roc_auc_score(out, scores),
            lambda: metrics.auroc(inside, outside),
        ),
        "all metrics": (all_of_sklearn, lambda: metrics.all_metrics(inside, outside)),
    }


def alternated(contenders: dict[str, Contender]) -> dict[str, float]:
    """Median seconds of each, one round of all after another; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(name: str, bank: np.ndarray, test: np.ndarray) -> float:
    """MB that scoring adds to this process at its peak; libraries warm, bank in place."""
    prepare = exp_cosine_contenders(bank, test)[name]
    exp_cosine_contenders(bank[:BLOCK], test[:8])[name]()()
    run = prepare()
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak begins anew
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A size of this process, in kB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


def _peaks(names: list[str], argv: list[str]) -> dict[str, float]:
    found = {}
    for name in names:
        command = [sys.executable, os.path.abspath(__file__), *argv, f"--peak-of={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def main(argv: list[str]) -> None:
    """Prints two tables: exp-cosine, then metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("bank", 50_000), ("test", 2_000), ("width", 384), ("scores", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    bank, test = vectors(options.bank, options.width, 0), vectors(options.test, options.width, 1)
    if options.peak_of:
        print(peak(options.peak_of, bank, test))
        return
    contenders = {name: prepare() for name, prepare in exp_cosine_contenders(bank, test).items()}
    seconds = alternated(contenders)
    peaks = _peaks(list(contenders), argv) if options.memory else {}
    print(f"exp-cosine, {options.test:,} x {options.bank:,} x {options.width}")
    for name, value in seconds.items():
        extra = f"  peak +{peaks[name]:,.0f} MB" if peaks else ""
        print(f"  {name:22s} {value:7.3f} s  {seconds['numpy naive'] / value:5.2f} x{extra}")
    fastest = min(value for name, value in seconds.items() if name != "ood_jax")
    print(f"  ood_jax to the fastest other: {fastest / seconds['ood_jax']:.2f} x")
    print(f"metrics of {options.scores:,} scores")
    for name, (theirs, ours) in metric_contenders(options.scores).items():
        pair = alternated({"sklearn": theirs, "ood_jax": ours})
        ratio = pair["sklearn"] / pair["ood_jax"]
        print(f"  {name:22s} {pair['ood_jax']:7.3f} s  {ratio:5.2f} x scikit-learn")


if __name__ == "__main__":
    main(sys.argv[1:])
