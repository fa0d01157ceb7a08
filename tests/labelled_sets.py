"""Tiny sets with class names, a recipe on them for any method, and runs that look finished."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ood_jax import config as configs
from ood_jax.recipe import load

CLASSES = ("cat", "dog", "owl", "great white")
TRAIN, TEST = (12, 16, 8, 10), (4, 3, 3, 2)  # images of each class: dog is the largest, then cat

RECIPE = '''"""METHOD[,outliers] on tiny images, with an auxiliary set or without; or staged."""

from ood_jax.config import base, staged


def get_config(argument="simclr"):
    method, _, outliers = argument.partition(",")
    if method == "staged":
        two = staged("two", first=_one("simclr", False), second=_one("oecl", True))
        two.second.model.weights = "stage:first"
        return two
    return _one(method, bool(outliers))


def _one(method, outliers):
    c = base(method)
    c.name = method
    c.data.root = {root!r}
    c.data.train, c.data.test = "npz:train.npz", "npz:test.npz"
    c.data.auxiliary = "npz:other.npz" if outliers else ""
    c.data.size = c.model.image_size = 16
    c.model.name, c.model.depth, c.model.width, c.model.stride = "resnet", 10, 4, 2
    c.head.name, c.head.hidden, c.head.bottleneck, c.head.outputs = "projection", 0, 8, 0
    c.optim.name, c.optim.warmup_epochs = "sgd", 0.0
    c.train.batch, c.train.steps, c.train.epochs, c.train.devices = 4, 2, 2.0, 1
    c.score.near, c.score.far = ("near=npz:near.npz",), ("far=npz:far.npz",)
    c.score.scorers, c.score.augmentations, c.score.batch = ("norm_mean", "norm"), 2, 8
    c.score.knn, c.score.bootstrap = 1, 0
    if method == "oecl":
        c.method.norm_warmup_epochs = 0.0
    return c
'''


def write_sets(folder: Path) -> str:
    """FOLDER/train.npz and so on; returns the recipe's path."""
    rng = np.random.default_rng(0)

    def write(name: str, counts: tuple[int, ...]) -> None:
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        images = rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
        known: dict[str, Any] = {"labels": labels, "classes": CLASSES} if counts[1:] else {}
        np.savez(folder / f"{name}.npz", images=images, **known)

    folder.mkdir(parents=True, exist_ok=True)
    write("train", TRAIN)
    write("test", TEST)
    write("calibration", (2, 2, 2, 2))
    for name in ("other", "near", "far"):
        write(name, (9,))
    (folder / "tiny.py").write_text(RECIPE.replace("{root!r}", repr(str(folder))))
    return str(folder / "tiny.py")


def finish(
    run,
    auroc: float | dict[str, float],
    scorers: tuple[str, ...] = ("norm_mean",),
    accuracy: float | None = None,
) -> None:
    """What ood_jax.main would leave in the workdir of `run`: AUROC of every OOD set, or by set."""
    whole = load(list(run.arguments))
    stages = [json.loads(configs.to_json(one)) for one in configs.stages_of(whole).values()]
    for config in stages:
        config["train"]["steps_per_epoch"] = config["train"]["steps_per_epoch"] or 1.0
    names = configs.named_sources(run.scored["score.near"] + run.scored["score.far"])
    by_set = auroc if isinstance(auroc, dict) else dict.fromkeys(names, auroc)
    found = {
        "schema": 2,
        "name": "tiny",
        "step": stages[-1]["train"]["steps"],
        "config": stages[-1],
        "earlier_stages": dict(zip(whole.stages[:-1], stages[:-1], strict=True)),
        "in_distribution": {"accuracy": accuracy},
        "sets": {name: {s: {"auroc": by_set[name]} for s in scorers} for name in names},
    }
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "results.json").write_text(json.dumps(found))
