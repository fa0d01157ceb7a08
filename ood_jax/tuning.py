"""Hyperparameters of scores, chosen on OOD validation images: never on a test set."""

import itertools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ood_jax import metrics, scorers
from ood_jax.features import Extracted
from ood_jax.plan import CALIBRATION, TRAIN, VALIDATION, Plan
from ood_jax.progress import Progress

TRIED: dict[str, dict[str, tuple[Any, ...]]] = {
    "exp_cosine": {"temperature": (0.02, 0.04, 0.1, 0.2)},
    "knn": {"neighbour": (1, 5, 10, 20, 50, 100, 200)},
    "energy": {"energy_temperature": (0.5, 1.0, 2.0, 5.0)},
    "gen": {"gen_gamma": (0.01, 0.1, 0.5, 1.0), "gen_top": (10, 50, 100)},
    "react": {"react_percentile": (85.0, 90.0, 95.0, 99.0)},
    "dice": {"dice_percentile": (70.0, 80.0, 90.0)},
    "nci": {"nci_alpha": (1e-4, 1e-3, 1e-2, 1e-1)},
    "ssd": {"clusters": (1, 5, 10)},
}


def choose(
    config: ConfigDict, plan: Plan, found: dict[str, Extracted]
) -> tuple[ConfigDict, dict[str, Any]]:
    """(config.score with the values of highest AUROC, what was tried).

    AUROC of the calibration images against the OOD validation images; scores without an entry in
    TRIED keep their values. What was tried: {SCORER: {"chosen", "tried": [{key: value, "auroc"}]}}.
    A value that a scorer refuses (more neighbours than images) is left out.
    """
    config = config.copy_and_resolve_references()
    names = [name for name in plan.scorers if name in TRIED]
    first = jax.process_index() == 0
    chosen: dict[str, Any] = {}
    with Progress(len(names), unit="scorers", label="tuning", enabled=first) as bar:
        for name in names:
            tried = _tried(name, config, plan, found)
            if tried:
                best = max(tried, key=lambda entry: entry["auroc"])
                values = {key: value for key, value in best.items() if key != "auroc"}
                chosen[name] = {"chosen": values, "tried": tried}
                with config.unlocked():
                    config.score.update(values)
            bar.update()
    return config, chosen


def _tried(
    name: str, config: ConfigDict, plan: Plan, found: dict[str, Extracted]
) -> list[dict[str, Any]]:
    grid = TRIED[name]
    out = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        score = config.score.copy_and_resolve_references()
        with score.unlocked():
            score.update(settings)
        try:
            scorer = scorers.build(name, score, plan.mesh)
            state = scorer.fit(found[TRAIN].features)
            inside, outside = (
                np.asarray(scorers.run(scorer, state, found[part].features, plan.mesh))
                for part in (CALIBRATION, VALIDATION)
            )
        except ValueError:
            continue
        out.append(settings | {"auroc": metrics.auroc(inside, outside)})
    return out
