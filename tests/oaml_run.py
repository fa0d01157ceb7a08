"""A whole OAML recipe that takes seconds: teacher, mine, generate, student over 24 images."""

from pathlib import Path

import numpy as np
from small_run import small_config

from ood_jax import outliers
from ood_jax.config import base, staged

CLASSES = 3


def images(folder: Path, method: str):
    """The images of tests/small_run.py, 24 of three classes, and what is scored."""
    own, c = small_config(folder, "supervised"), base(method)
    c.data = own.data
    c.data.auxiliary = ""
    c.score = own.score
    c.score.scorers = ("energy",)
    return c


def classifier(folder: Path, method: str):
    c = images(folder, method)
    c.model.name, c.model.depth, c.model.width, c.model.heads = "vit", 1, 8, 1
    c.model.image_size, c.model.patch, c.model.drop_path = 16, 8, 0.0
    c.head.name, c.head.outputs = "linear", CLASSES
    c.method.crop_pad = 1
    return optimised(c)


def optimised(c, steps: int = 4):
    c.optim.name, c.optim.lr, c.optim.lr_batch = "sgd", 0.01, 0
    c.optim.freeze_epochs, c.optim.warmup_epochs = 0.0, 0.0
    c.train.batch, c.train.steps, c.train.epochs = 8, steps, 1.0
    c.train.checkpoint_every, c.train.log_every = 1, 1
    return c


def teacher(folder: Path):
    c = classifier(folder, "supervised")
    c.model.width = 48
    return c


def mine(folder: Path):
    c = images(folder, "mine")
    c.data.embeddings = "stage:teacher"
    m = c.method
    m.neighbour, m.points, m.picked, m.draws, m.keep, m.rounds = 4, 3, 3, 20, 1, 4
    return c


def generate(folder: Path):
    c = optimised(images(folder, "diffusion"))
    c.data.embeddings, c.data.near = "stage:teacher", "stage:mine"
    m = c.method
    m.width, m.depth, m.times, m.sample_steps, m.outliers = 8, 1, 10, 5, 20
    return c


def student(folder: Path):
    c = classifier(folder, "oaml")
    c.data.embeddings = "stage:teacher"
    c.data.near, c.data.far = "stage:mine", "stage:generate"
    c.method.hidden = 8
    return c


def recipe(folder: Path):
    """The stages teacher, mine, generate, student."""
    parts = {part.__name__: part(folder) for part in (teacher, mine, generate, student)}
    return staged("oaml", **parts)


def write_embeddings(path: Path, width: int = 5, rows: int = 24, **arrays) -> str:
    """Random features of three classes, and logits that name them."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % CLASSES
    features = rng.normal(size=(CLASSES, width))[labels] + 0.3 * rng.normal(size=(rows, width))
    logits = 4.0 * np.eye(CLASSES)[labels]
    held = {"features": features.astype(np.float32), "logits": logits.astype(np.float32)}
    np.savez(path, **(held | arrays))
    return str(path)


def write_outliers(path: Path, kind: str, width: int, count: int = 30) -> str:
    features = np.random.default_rng(len(kind)).normal(size=(count, width)).astype(np.float32)
    about = {"seed": 0, "settings": {}, "checkpoint": {}}
    outliers.write(path, outliers.Outliers(features, kind, about, {}))
    return str(path)
