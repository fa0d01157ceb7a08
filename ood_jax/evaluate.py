"""From a checkpoint and opened sets to scores and metrics; score.py writes them down."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import features, metrics, models, scorers, sharding
from ood_jax.cache import cached, digest, stamp
from ood_jax.checkpoint import Restored
from ood_jax.config import to_json
from ood_jax.data.source import Source
from ood_jax.features import Extracted
from ood_jax.plan import TEST, TRAIN, Plan
from ood_jax.results import SetScores
from ood_jax.scorers import knn
from ood_jax.types import Net, PyTree, Scorer

Found = dict[str, Extracted]  # set -> its features


class Evaluation(NamedTuple):
    """All that results are made of.

    in_distribution: the block of results.json. metrics: OOD set -> scorer -> `all_metrics`.
    scores: of the test set and the OOD sets. skipped: set -> images that could not be read.
    """

    in_distribution: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any]]]
    scores: dict[str, SetScores]
    skipped: dict[str, int]


class _Run(NamedTuple):
    plan: Plan
    config: ConfigDict
    mesh: Mesh
    folder: Path | None  # of cached features


def evaluate(plan: Plan, config: ConfigDict, restored: Restored, folder: Path | None) -> Evaluation:
    """Extracts, fits and scores: the checkpoint first, then the baselines that the config names.

    folder: where features are kept, as <set>.npz; None = nowhere.

    Raises:
      ValueError: scores that are no numbers, naming set and scorer; no image of a set can be read.
    """
    mesh = sharding.make_mesh(min(config.train.devices, len(jax.devices())))
    run = _Run(plan, config, mesh, folder)
    found = _extract(run, plan.net, restored.params, restored.stats, "")
    fitted = {name: scorers.build(name, config.score) for name in config.score.scorers}
    scores = _judge(fitted, found, "")
    inside = _in_distribution(run, restored, found, scores[TEST], next(iter(fitted.items())))
    for baseline, network_run, net, params, stats in _baselines(run):
        theirs = _extract(network_run, net, params, stats, f"@{baseline}")
        usable = _usable(network_run.config, baseline)
        for name, more in _judge(usable, theirs, f"@{baseline}").items():
            scores[name] |= more
    return Evaluation(
        inside,
        {name: _metrics(name, scores[TEST], found) for name, found in _ood(scores)},
        {name: _set_scores(plan.sets[name], found[name], scores, name) for name in scores},
        {name: extracted.skipped for name, extracted in found.items()},
    )


def _ood(scores: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, found) for name, found in scores.items() if name != TEST]


def _extract(run: _Run, net: Net, params: PyTree, stats: PyTree, suffix: str) -> Found:
    """The features of all sets under one network, from the cache where they are there."""
    fields = ("features",) if suffix == "@pixels" else run.plan.fields
    network = digest((params, stats))
    out = {}
    for name, source in run.plan.sets.items():

        def compute(source: Source = source, name: str = name) -> dict[str, np.ndarray]:
            extracted = features.extract(
                net,
                params,
                stats,
                source,
                config=run.config,
                mesh=run.mesh,
                fields=fields,
                label=f"features {name}{suffix}",
            )
            return features.pack(extracted)

        meta = _meta(run.config, source, network) | {"fields": fields}
        # Pixels are as fast to read from the set as from a far larger file of float32.
        kept = run.folder is not None and suffix != "@pixels"
        path = run.folder / f"{name}{suffix}.npz" if run.folder and kept else None
        out[name] = features.unpack(cached(path, meta, compute))
    return out


def _meta(config: ConfigDict, source: Source, network: str) -> dict[str, Any]:
    """What features depend on: the set, how its images are shown, the network and its arrays."""
    parts = json.loads(to_json(config))
    return {
        "source": source.spec,
        "root": config.data.root,
        "images": len(source),
        "stamp": stamp(source.spec, config.data.root),
        "view": {key: parts["data"][key] for key in ("size", "mean", "std")},
        "network": {"model": parts["model"], "head": parts["head"], "arrays": network},
    }


def _judge(
    fitted: dict[str, Scorer], found: Found, suffix: str
) -> dict[str, dict[str, np.ndarray]]:
    """{set: {scorer: scores float64 [N]}} of the test set and the OOD sets."""
    out: dict[str, dict[str, np.ndarray]] = {name: {} for name in found if name != TRAIN}
    for scorer_name, scorer in fitted.items():
        state = scorer.fit(found[TRAIN].features)
        for name, by_scorer in out.items():
            scores = np.asarray(scorer.score(state, found[name].features), np.float64)
            if scores.shape != found[name].rows.shape or np.isnan(scores).any():
                raise ValueError(
                    f"scorer {scorer_name}{suffix}, set {name}: scores {list(scores.shape)} with"
                    f" {int(np.isnan(scores).sum())} NaN; one number an image is needed,"
                    f" [{len(found[name].rows)}]"
                )
            by_scorer[scorer_name + suffix] = scores
    return out


def _metrics(
    name: str, test: dict[str, np.ndarray], scores: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    return {scorer: metrics.all_metrics(test[scorer], scores[scorer]) for scorer in scores}


def _set_scores(
    source: Source,
    extracted: Extracted,
    scores: dict[str, dict[str, np.ndarray]],
    name: str,
) -> SetScores:
    labels = extracted.features.labels
    return SetScores(
        [source.name(int(row)) for row in extracted.rows],
        extracted.rows,
        None if labels is None else np.asarray(labels),
        scores[name],
        {s: metrics.ood_rank(scores[TEST][s], values) for s, values in scores[name].items()},
    )


def _in_distribution(
    run: _Run,
    restored: Restored,
    found: Found,
    test_scores: dict[str, np.ndarray],
    primary: tuple[str, Scorer],
) -> dict[str, Any]:
    """kNN accuracy, sensitivity of the first scorer, occupied soft-classes, counts."""
    name, scorer = primary
    train, test = found[TRAIN], found[TEST]
    state = scorer.fit(train.features)
    literal = metrics.auroc(scorer.score(state, train.features), test_scores[name])
    sensitivity = literal
    if scorer.score_train is not None:
        sensitivity = metrics.auroc(scorer.score_train(state), test_scores[name])
    return {
        "knn_accuracy": knn_accuracy(run.config, train, test),
        "knn_neighbours": run.config.score.knn,
        "sensitivity_auroc": sensitivity,
        "sensitivity_auroc_literal": literal,
        "occupied_classes": _occupied(run, restored),
        "n_train": len(train.rows),
        "n_test": len(test.rows),
        "skipped": train.skipped + test.skipped,
    }


def knn_accuracy(config: ConfigDict, train: Extracted, test: Extracted) -> float | None:
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
    )


def _occupied(run: _Run, restored: Restored) -> float | None:
    """None where the method remembers no centre and temperature of soft-classes."""
    memory = restored.memory
    if "centre" not in memory or "teacher_temperature" not in memory:
        return None

    def compute() -> dict[str, np.ndarray]:
        mean = features.mean_probability(
            run.plan.net,
            restored.params,
            restored.stats,
            run.plan.sets[TEST],
            config=run.config,
            mesh=run.mesh,
            centre=memory["centre"],
            teacher_temperature=float(memory["teacher_temperature"]),
        )
        return {"mean": mean}

    arrays = digest((restored.params, restored.stats, memory))
    path = run.folder / "soft_classes.npz" if run.folder else None
    meta = _meta(run.config, run.plan.sets[TEST], arrays)
    return features.occupied(cached(path, meta, compute)["mean"])


def _baselines(run: _Run) -> Iterator[tuple[str, _Run, Net, PyTree, PyTree]]:
    """(name, the run as this baseline sees it, its network, params, stats)."""
    for name in run.config.score.baselines:
        if name == "pixels":
            config = run.config.copy_and_resolve_references()
            with config.unlocked():
                config.model.image_size = config.data.size
                config.score.feature = "features"
            yield name, run._replace(config=config), features.pixels_net(), {}, {}
        else:
            params, stats = models.init_params(run.plan.net, run.config)
            yield name, run, run.plan.net, params, stats


def _usable(config: ConfigDict, baseline: str) -> dict[str, Scorer]:
    """The scorers that can judge a baseline: pixels have neither logits nor projections."""
    return {
        name: scorers.build(name, config.score)
        for name in config.score.scorers
        if baseline != "pixels" or set(scorers.fields(name, config.score)) <= {"features"}
    }
