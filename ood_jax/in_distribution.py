"""What a run's features say of its own classes: accuracies, sensitivity, occupied soft-classes."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import features, kept, metrics, scorers
from ood_jax.accuracy import accuracy
from ood_jax.cache import cached, digest
from ood_jax.checkpoint import Restored
from ood_jax.features import Extracted
from ood_jax.kept import Network
from ood_jax.models.heads import CLASSIFIERS
from ood_jax.plan import CALIBRATION, TEST, TRAIN, Plan
from ood_jax.scorers import knn
from ood_jax.types import Scorer


def measure(
    network: Network,
    restored: Restored,
    plan: Plan,
    found: dict[str, Extracted],
    test_scores: dict[str, np.ndarray],
    primary: str,
) -> dict[str, Any]:
    """The block of results.json: accuracies, sensitivity under the scorer `primary`, counts."""
    config = network.config
    train, test = found[TRAIN], found[TEST]
    sensitivity, literal = _sensitivity(plan, train, plan.scorers[primary], test_scores[primary])
    return {
        **accuracies(config, test),
        "knn_accuracy": knn_accuracy(config, train, test, plan.mesh),
        "knn_neighbours": config.score.knn,
        "sensitivity_auroc": sensitivity,
        "sensitivity_auroc_literal": literal,
        "occupied_classes": _occupied(network, restored, plan),
        "n_train": len(train.rows),
        "n_test": len(test.rows),
        "n_calibration": len(found[CALIBRATION].rows),
        "skipped": train.skipped + test.skipped,
    }


def _sensitivity(
    plan: Plan, train: Extracted, scorer: Scorer, test_scores: np.ndarray
) -> tuple[float | None, float | None]:
    """AUROC of train against test: each train image left out of the bank, and met by itself.

    Rafiee et al. (2022), section 5. None where the score's extras are not computed of train.
    """
    if scorer.extra is not None and scorer.extra.train is not True:
        return None, None
    state = scorer.fit(train.features)
    scores = scorers.run(scorer, state, train.features, plan.mesh)
    literal = metrics.auroc(scores, test_scores)
    if scorer.score_train is None:
        return literal, literal
    return metrics.auroc(scorer.score_train(state), test_scores), literal


def accuracies(config: ConfigDict, test: Extracted) -> dict[str, float | None]:
    """ "accuracy" on labelled test images, None where logits are no classes or labels absent.

    Of two classifiers of the same classes it is the first's; "second_accuracy" is the other's,
    where its logits were extracted.
    """
    logits, labels = test.features.logits, test.features.labels
    second = test.features.second_logits
    if config.head.name not in CLASSIFIERS or logits is None or labels is None or max(labels) < 0:
        return {"accuracy": None}
    heads = {"accuracy": logits}
    if second is not None and second.shape == logits.shape:
        heads["second_accuracy"] = second
    return {name: accuracy(np.argmax(np.asarray(x), 1), labels) for name, x in heads.items()}


def knn_accuracy(config: ConfigDict, train: Extracted, test: Extracted, mesh: Mesh) -> float | None:
    """Weighted kNN accuracy as `config.score` has it; None where images have no labels."""
    bank_labels, labels = train.features.labels, test.features.labels
    if bank_labels is None or labels is None or max(bank_labels) < 0 or max(labels) < 0:
        return None
    return knn.knn_accuracy(
        knn.pick(train.features, config.score.feature),
        bank_labels,
        knn.pick(test.features, config.score.feature),
        labels,
        neighbours=config.score.knn,
        temperature=config.score.knn_temperature,
        block=config.score.block,
        mesh=mesh,
    )


def _occupied(network: Network, restored: Restored, plan: Plan) -> float | None:
    """None where the method remembers no centre and temperature of soft-classes."""
    memory = restored.memory
    if "centre" not in memory or "teacher_temperature" not in memory:
        return None

    def compute() -> dict[str, np.ndarray]:
        mean = features.mean_probability(
            network.net,
            network.params,
            network.stats,
            plan.sets[TEST],
            config=network.config,
            mesh=network.mesh,
            centre=memory["centre"],
            teacher_temperature=float(memory["teacher_temperature"]),
        )
        return {"mean": mean}

    arrays = digest((network.params, network.stats, memory))
    path = network.folder / "soft_classes.npz" if network.folder else None
    meta = kept.meta(network, plan.sets[TEST], arrays)
    return features.occupied(cached(path, meta, compute)["mean"])
