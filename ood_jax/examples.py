"""What a report shows of single images: the worst mistakes, their neighbours, a map of features."""

import json

import numpy as np
from ml_collections import ConfigDict

from ood_jax.data.decode import fit
from ood_jax.data.source import CorruptImage, Source
from ood_jax.features import Extracted
from ood_jax.plan import CALIBRATION, TEST, TRAIN, Plan
from ood_jax.scorers import knn
from ood_jax.types import Array, Features

WORST = 12  # images of each set
NEIGHBOURS = 3  # train images beside each
PIXELS = 96  # largest side of a thumbnail
POINTS = 300  # images of each set on the map
AXES = 32  # principal axes that are kept
FITTED = 5000  # train images that the axes come from


def collect(
    plan: Plan,
    config: ConfigDict,
    found: dict[str, Extracted],
    scores: dict[str, dict[str, np.ndarray]],
    scorer: str,
) -> dict[str, np.ndarray]:
    """The arrays of examples.npz.

    "meta": JSON {"scorer", "sets"}. Of the test set and every OOD set NAME, worst mistakes first:
    NAME/images uint8 [K, S, S, 3], NAME/rows int32 [K], NAME/scores float64 [K],
    NAME/neighbours uint8 [K, n, S, S, 3], NAME/neighbour_rows int32 [K, n], NAME/cosines float32
    [K, n]. NAME/confidences float32 [N, 3], see there, where there are two classifiers of the same
    classes. Of these and train, NAME/points float32 [<= 300, A]: features on the principal axes
    of the train features.
    """
    names = [name for name in found if name not in (TRAIN, CALIBRATION)]
    held = {"meta": np.array(json.dumps({"scorer": scorer, "sets": names}))}
    side = min(config.data.size, PIXELS)
    for name in names:
        order = np.argsort(scores[name][scorer], kind="stable")
        worst = (order[::-1] if name == TEST else order)[:WORST]
        theirs = _mistakes(plan, config, found, name, worst, side)
        held |= {f"{name}/{key}": value for key, value in theirs.items()}
        held[f"{name}/scores"] = scores[name][scorer][worst]
        if (both := confidences(found[name].features)) is not None:
            held[f"{name}/confidences"] = both
    points = _points(found, config.score.feature, [TRAIN, *names])
    return held | {f"{name}/points": value for name, value in points.items()}


def confidences(features: Features) -> np.ndarray | None:
    """max p1, max p2 and sum_k |p1 - p2| of two classifiers: float32 [N, 3]; None = not two."""
    first, second = features.logits, features.second_logits
    if first is None or second is None or np.shape(first) != np.shape(second):
        return None
    p1, p2 = (_softmax(np.asarray(logits, np.float32)) for logits in (first, second))
    return np.stack([p1.max(1), p2.max(1), np.abs(p1 - p2).sum(1)], axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def _mistakes(
    plan: Plan,
    config: ConfigDict,
    found: dict[str, Extracted],
    name: str,
    worst: np.ndarray,
    side: int,
) -> dict[str, np.ndarray]:
    bank, shown = found[TRAIN], found[name]
    cosines, near = knn.nearest(
        knn.pick(bank.features, config.score.feature),
        np.asarray(knn.pick(shown.features, config.score.feature))[worst],
        neighbours=min(NEIGHBOURS, len(bank.rows)),
        block=config.score.block,
    )
    rows, neighbour_rows = shown.rows[worst], bank.rows[near]
    neighbours = thumbnails(plan.sets[TRAIN], neighbour_rows.ravel(), side)
    return {
        "images": thumbnails(plan.sets[name], rows, side),
        "rows": rows,
        "neighbours": neighbours.reshape(*neighbour_rows.shape, side, side, 3),
        "neighbour_rows": neighbour_rows,
        "cosines": cosines,
    }


def thumbnails(source: Source, rows: np.ndarray, side: int) -> np.ndarray:
    """uint8 [N, side, side, 3]; an image that cannot be read any more is black."""

    def one(row: int) -> np.ndarray:
        try:
            return fit(source.image(row), side)
        except (CorruptImage, OSError):
            return np.zeros((side, side, 3), np.uint8)

    return np.stack([one(int(row)) for row in rows])


def _points(found: dict[str, Extracted], feature: str, names: list[str]) -> dict[str, np.ndarray]:
    train = _spread(knn.pick(found[TRAIN].features, feature), FITTED)
    mean = train.mean(0)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    axes = axes[:AXES].T
    return {
        name: ((_spread(knn.pick(found[name].features, feature), POINTS) - mean) @ axes)
        for name in names
    }


def _spread(rows: Array, count: int) -> np.ndarray:
    """`count` rows evenly over all, float32; all where there are fewer."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return np.asarray(rows, np.float32)[chosen]
