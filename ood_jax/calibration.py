"""What a run's threshold rests on: scores of in-distribution images that nothing was fitted on."""

import json
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ood_jax.atomic import replaced
from ood_jax.config import from_json, to_json
from ood_jax.untrusted import MISSHAPEN, read_json

SCHEMA = 1


class Calibration(NamedTuple):
    """step: of the checkpoint. thresholds: scorer -> the score above which an image is called OOD.

    scores: scorer -> float64 [N], of the calibration images. config: what the scorers were fitted
    with.
    """

    step: int
    thresholds: dict[str, float]
    scores: dict[str, np.ndarray]
    config: ConfigDict


def write(calibration: Calibration, path: epath.PathLike) -> None:
    """Writes W/calibration.json, whole or not at all.

    Raises:
      ValueError: the place cannot be written.
    """
    held = {
        "schema": SCHEMA,
        "step": calibration.step,
        "keep": calibration.config.score.keep,
        "scorers": {
            name: {"threshold": threshold, "scores": np.sort(calibration.scores[name]).tolist()}
            for name, threshold in calibration.thresholds.items()
        },
        "config": json.loads(to_json(calibration.config)),
    }
    with replaced(path) as fresh:
        fresh.write_text(json.dumps(held) + "\n", encoding="utf-8")


def read(path: epath.PathLike) -> Calibration | None:
    """What `write` wrote; None = there is no such file, or none of this schema."""
    try:
        held = read_json(path)
        if held["schema"] != SCHEMA:
            return None
        scorers = held["scorers"]
        return Calibration(
            int(held["step"]),
            {name: float(one["threshold"]) for name, one in scorers.items()},
            {name: np.asarray(one["scores"], np.float64) for name, one in scorers.items()},
            from_json(json.dumps(held["config"])),
        )
    except (OSError, *MISSHAPEN):
        return None
