"""Makes workdirs as scoring leaves them (schema 2), with seeded random scores, for the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ood_jax import metrics

NEAR, FAR = ("cifar100", "tin"), ("svhn", "textures", "places365")
SCORERS = ("exp_cosine", "knn")


def make(
    folder: Path,
    *,
    name: str = "dino",
    seed: int = 0,
    quality: float = 1.0,
    near: tuple[str, ...] = NEAR,
    far: tuple[str, ...] = FAR,
    scorers: tuple[str, ...] = SCORERS,
    baselines: tuple[str, ...] = ("pixels",),
    settings: dict | None = None,
    images: int = 60,
    bootstrap: bool = True,
    size: int = 16,
    steps: int = 30,
    points: int = 100,
) -> dict:
    """Writes FOLDER/results.json and all that lies beside it; returns the results.

    quality: how far OOD scores lie from in-distribution ones; far sets twice as far as near ones.
    """
    rng = np.random.default_rng(abs(hash_of(f"{name}{seed}")))
    names = [*scorers, *(f"{scorers[0]}@{baseline}" for baseline in baselines)]
    scale = {s: 0.2 if "@" in s else quality * (1 - 0.1 * i) for i, s in enumerate(names)}
    shift = {"test": 0.0} | {n: 1.0 + 0.2 * i for i, n in enumerate(near)}
    shift |= {n: 2.0 + 0.5 * i for i, n in enumerate(far)}
    scores = {
        n: {s: rng.normal(by * scale[s], 1.0, images) for s in names} for n, by in shift.items()
    }
    results = _results(name, seed, near, far, names, scores, settings or {}, bootstrap, quality)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    _write_scores(folder, scores)
    _write_examples(folder, scores, names[0], size, points, rng)
    _write_metrics(folder, steps, rng)
    return results


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(text)) % 2**32


def _results(name, seed, near, far, names, scores, settings, bootstrap, quality):
    inside = scores["test"]
    thresholds = {s: float(np.quantile(inside[s], 0.95)) for s in names}
    sets = {}
    for ood in (*near, *far):
        sets[ood] = {s: metrics.all_metrics(inside[s], scores[ood][s]) for s in names}
        for s, found in sets[ood].items():
            found["rejected"] = float(np.mean(scores[ood][s] > thresholds[s]))
            if bootstrap:
                found["auroc_low"] = max(0.0, found["auroc"] - 0.02)
                found["auroc_high"] = min(1.0, found["auroc"] + 0.02)
    config = {
        "name": name,
        "seed": seed,
        "data": {"train": "npz:train.npz", "test": "npz:test.npz", "root": "", "size": 32},
        "method": {"name": "dino_negatives", "preset": "paper", "negative_weight": 1.0},
        "train": {"batch": 64, "epochs": 4.0},
        "score": {
            "near": [f"{n}=npz:{n}.npz" for n in near],
            "far": [f"{n}=npz:{n}.npz" for n in far],
            "feature": "features",
            "benchmark": "",
        },
    }
    for key, value in settings.items():
        part, leaf = key.split(".")
        config[part][leaf] = value
    return {
        "schema": 2,
        "name": name,
        "step": 624,
        "config": config,
        "in_distribution": {
            "knn_accuracy": 0.8 + 0.05 * quality + 0.001 * seed,
            "knn_neighbours": 20,
            "accuracy": None,
            "sensitivity_auroc": 0.5 + 0.02 * quality + 0.002 * seed,
            "sensitivity_auroc_literal": 0.6,
            "occupied_classes": 0.2 - 0.05 * quality + 0.001 * seed,
            "n_train": 1000,
            "n_test": len(inside[names[0]]),
            "n_calibration": 100,
            "skipped": 0,
        },
        "scorers": {
            s: {"threshold": t, "kept_test": 0.95, "facts": {"neighbours": 50, "shrinkage": 0.125}}
            for s, t in thresholds.items()
        },
        "sets": sets,
        "near": means(sets, near),
        "far": means(sets, far),
        "skipped": {"test": 0},
        "not_scored": {"msp": "needs logits of a classifier"},
    }


def means(sets, names):
    """Unweighted means over `names`, as results.group_means has them."""
    found = [sets[name] for name in names]
    return {
        s: {k: float(np.mean([f[s][k] for f in found])) for k in found[0][s] if k[:2] != "n_"}
        for s in (found[0] if found else {})
    }


def _write_scores(folder, scores):
    rows = []
    for name, by_scorer in scores.items():
        for scorer, values in by_scorer.items():
            ranks = metrics.ood_rank(scores["test"][scorer], values)
            count = len(values)
            columns = {
                "image": pa.array([f"{name}/{i:05}.png" for i in range(count)]),
                "index": pa.array(np.arange(count, dtype=np.int32)),
                "label": pa.array([None] * count, pa.int32()),
                "set": pa.array([name] * count),
                "scorer": pa.array([scorer] * count),
                "score": pa.array(values),
                "ood_rank": pa.array(ranks),
            }
            rows.append(pa.table(columns))
    parquet.write_table(pa.concat_tables(rows), folder / "scores.parquet")


def pictures(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
    """uint8 [*shape, size, size, 3]: discs of one colour on another."""
    y, x = np.mgrid[:size, :size] / size
    centre = rng.uniform(0.3, 0.7, (*shape, 2, 1, 1))
    radius = rng.uniform(0.15, 0.4, (*shape, 1, 1))
    disc = (y - centre[..., 0, :, :]) ** 2 + (x - centre[..., 1, :, :]) ** 2 < radius**2
    colours = rng.integers(0, 256, (*shape, 2, 1, 1, 3))
    mixed = np.where(disc[..., None], colours[..., 0, :, :, :], colours[..., 1, :, :, :])
    return (mixed + rng.integers(-9, 10, mixed.shape)).clip(0, 255).astype(np.uint8)


def _write_examples(folder, scores, scorer, size, points, rng, count=6, near=4, dims=8):
    arrays: Any = {"meta": np.array(json.dumps({"scorer": scorer, "sets": list(scores)}))}
    arrays["train/points"] = rng.normal(size=(points, dims)).astype(np.float32)
    for name, by_scorer in scores.items():
        values = by_scorer[scorer]
        order = np.argsort(-values if name == "test" else values)[:count]
        found = {
            "images": pictures(rng, (len(order),), size),
            "rows": order.astype(np.int32),
            "scores": values[order],
            "neighbours": pictures(rng, (len(order), near), size),
            "neighbour_rows": rng.integers(0, 1000, (len(order), near), dtype=np.int32),
            "cosines": np.sort(rng.uniform(0.5, 1, (len(order), near)).astype(np.float32))[:, ::-1],
            "points": rng.normal(values.mean(), 1, (points, dims)).astype(np.float32),
        }
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    np.savez(folder / "examples.npz", **arrays)


def _write_metrics(folder, steps, rng):
    lines = []
    for i in range(1, steps + 1):
        rate = 0.002 * min(i / 5, (steps - i) / steps)
        row = {"step": 50 * i, "time": 1.7e9 + i, "loss": 4 * np.exp(-i / 20) + rng.normal(0, 0.05)}
        row |= {"learning_rate": rate, "teacher_entropy": 3 + np.cos(i / 5), "skipped": 0.0}
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
