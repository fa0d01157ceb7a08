"""Makes what ood_jax.clp writes, and runs on its sets whose scores follow it, for the report."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from scored_workdir import make

CLASSES = {
    "c10": tuple("abcdefghij"),
    "c100": tuple(f"thing{i}" for i in range(20)),
    "svhn": tuple("0123456789"),
    "noise": ("gaussian",),
}
IMAGES = {"c100": 20, "svhn": 10, "noise": 50}  # of a class


def source(name: str) -> str:
    return f"npz:{name}_test.npz"


def clp_of(name: str) -> np.ndarray:
    """[N], image-wise; its class's value first, the same in every process."""
    ends = {"c100": (-7.0, -1.0), "svhn": (-12.0, -8.0), "noise": (-15.0, -15.0)}[name]
    by_class = np.linspace(*ends, len(CLASSES[name]))
    rng = np.random.default_rng(len(name))
    return np.repeat(by_class, IMAGES[name]) + rng.normal(0, 0.3, len(by_class) * IMAGES[name])


def labels_of(name: str) -> np.ndarray:
    return np.repeat(np.arange(len(CLASSES[name])), IMAGES[name])


def write_clp(root: Path) -> dict:
    """ROOT/clp.json and ROOT/clp_images.parquet; returns the former."""
    root.mkdir(parents=True)
    outside = [name for name in CLASSES if name != "c10"]
    log_mean = {
        name: [
            float(np.log(np.mean(np.exp(clp_of(name)[labels_of(name) == c]))))
            for c in range(len(CLASSES[name]))
        ]
        for name in outside
    }
    found = {
        "schema": 1,
        "members": [{}, {}],
        "sets": [
            {"name": n, "source": source(n), "classes": [f"{n}/{one}" for one in c]}
            for n, c in CLASSES.items()
        ],
        "dataset": {"c10": {n: float(np.log(np.mean(np.exp(clp_of(n))))) for n in outside}},
        "classwise": {"c10": {n: dict(enumerate(log_mean[n])) for n in outside}},
    }
    (root / "clp.json").write_text(json.dumps(found))
    tables = [
        pa.table(
            {
                "set": [name] * len(clp_of(name)),
                "source": [source(name)] * len(clp_of(name)),
                "image": [str(i) for i in range(len(clp_of(name)))],
                "label": labels_of(name),
                "inside": ["c10"] * len(clp_of(name)),
                "clp": clp_of(name),
            }
        )
        for name in outside
    ]
    parquet.write_table(pa.concat_tables(tables), root / "clp_images.parquet")
    return found


def write_run(
    folder: Path,
    *,
    name: str = "supervised",
    seed: int = 0,
    gain: float = 1.0,
    labelled: bool = True,
    test: str = "npz:c10_test.npz[:300]",
    sets: tuple[str, ...] = tuple(IMAGES),
) -> dict[str, np.ndarray]:
    """A scored workdir whose OOD images score -gain x CLP / 4 on average; returns its scores."""
    results = make(
        folder,
        name=name,
        seed=seed,
        near=tuple(n for n in sets if n == "c100"),
        far=tuple(n for n in sets if n != "c100"),
        scorers=("knn",),
        baselines=(),
        settings={"data.test": test, "method.negative_weight": gain},
        images=5,
        points=4,
        steps=2,
        size=8,
    )
    score = results["config"]["score"]
    score["near"] = [f"{n}={source(n)}[:999]" for n in sets if n == "c100"]
    score["far"] = [f"{n}={source(n)}" for n in sets if n != "c100"]
    (folder / "results.json").write_text(json.dumps(results))
    rng = np.random.default_rng([seed, round(100 * gain)])
    scores = {"test": rng.normal(0, 1, 300)}
    scores |= {n: rng.normal(-gain * clp_of(n) / 4, 1) for n in sets if n in IMAGES}
    tables = []
    for n, values in scores.items():
        labels = labels_of(n) if labelled and n != "test" else np.full(len(values), -1)
        columns = {
            "image": [str(i) for i in range(len(values))],
            "index": pa.array(np.arange(len(values)), pa.int32()),
            "label": pa.array(labels, pa.int32(), mask=labels < 0),
            "set": [n] * len(values),
            "scorer": ["knn"] * len(values),
            "score": values,
            "ood_rank": 100 * np.mean(scores["test"][:, None] < values, 0),
        }
        tables.append(pa.table(columns))
    parquet.write_table(pa.concat_tables(tables), folder / "scores.parquet")
    return scores
