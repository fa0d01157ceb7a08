"""From a checkpoint and opened sets to scores and metrics; score.py writes them down."""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ood_jax import examples, in_distribution, kept, metrics, scorers, tuning
from ood_jax.baselines import networks
from ood_jax.bootstrap import bootstrap_auroc, interval
from ood_jax.checkpoint import Restored
from ood_jax.data.source import Source
from ood_jax.features import Extracted
from ood_jax.plan import CALIBRATION, TEST, TRAIN, VALIDATION, Plan
from ood_jax.progress import Progress
from ood_jax.results import SetScores, group_means
from ood_jax.types import PyTree, Scorer

Found = dict[str, Extracted]  # set -> its features
Scores = dict[str, dict[str, np.ndarray]]  # set -> scorer -> float64 [N], higher = more OOD


class Evaluation(NamedTuple):
    """All that results are made of.

    config: with the hyperparameters that were used. in_distribution: the block of results.json.
    scorers: scorer -> {"threshold", "kept_test", "facts"}. metrics: OOD set -> scorer ->
    `all_metrics` and more; groups: near and far likewise. scores: of the test set and the OOD sets.
    calibration: scorer -> float64 [N]. skipped: set -> images that could not be read. not_scored:
    scorer -> why. tuned: what --tune chose. examples: the arrays of examples.npz.
    """

    config: ConfigDict
    in_distribution: dict[str, Any]
    scorers: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, dict[str, Any]]]
    groups: dict[str, dict[str, dict[str, float]]]
    scores: dict[str, SetScores]
    calibration: dict[str, np.ndarray]
    skipped: dict[str, int]
    not_scored: dict[str, str]
    tuned: dict[str, Any]
    examples: dict[str, np.ndarray]


class Judged(NamedTuple):
    """scores: of every set but train. facts: of each scorer. failed: scorers, and why."""

    scores: Scores
    facts: dict[str, dict[str, Any]]
    failed: dict[str, str]


def evaluate(
    plan: Plan,
    config: ConfigDict,
    restored: Restored,
    folder: epath.Path | None,
    *,
    tune: bool = False,
) -> Evaluation:
    """Extracts, fits and scores: the checkpoint first, then the baselines that the config names.

    folder: where features are kept, as <set>.npz; None = nowhere. tune: hyperparameters are chosen
    on the calibration and validation sets first.

    Raises:
      ValueError: what a scorer refuses, naming scorer and set; no image of a set can be read.
    """
    network = _network(plan, config, restored, folder)
    found = kept.extract(network, plan.sets)
    tuned: dict[str, Any] = {}
    if tune:
        config, tuned = tuning.choose(config, plan, found)
        chosen = {name: scorers.build(name, config.score, plan.mesh) for name in plan.scorers}
        plan = plan._replace(scorers=chosen)
        found.pop(VALIDATION)
    judged = judge(plan, plan.scorers, found, asked=tuple(config.score.scorers))
    primary = next(iter(judged.facts))
    inside = in_distribution.measure(network, restored, plan, found, judged.scores[TEST], primary)
    shown = examples.collect(plan, config, found, judged.scores, primary)
    for other, scorer in networks(network, primary, plan.scorers[primary]):
        sets = {name: plan.sets[name] for name in found}
        theirs = judge(plan, {primary: scorer}, kept.extract(other, sets), other.suffix)
        judged = _merged(judged, theirs)
    done = summed_up(judged, found, plan.sets, plan.groups, config, inside)
    not_scored = plan.not_scored | judged.failed
    return done._replace(not_scored=not_scored, tuned=tuned, examples=shown)


def summed_up(
    judged: Judged,
    found: Found,
    sets: dict[str, Source],
    groups: dict[str, tuple[str, ...]],
    config: ConfigDict,
    inside: dict[str, Any],
) -> Evaluation:
    """From the scores of all sets to metrics; nothing is left out, nothing tuned, no examples.

    found: of each set its rows and labels, and how many were skipped. groups: near and far, names
    of OOD sets. inside: the in-distribution block.
    """
    scores = dict(judged.scores)
    calibration = scores.pop(CALIBRATION)
    by_scorer = _thresholds(judged, calibration, config.score.keep)
    by_set = {
        name: _metrics(scores[TEST], values, by_scorer)
        for name, values in scores.items()
        if name != TEST
    }
    by_group = {group: group_means(by_set, names) for group, names in groups.items()}
    _add_intervals(by_set, by_group, groups, scores, config.score.bootstrap)
    return Evaluation(
        config,
        inside,
        by_scorer,
        by_set,
        by_group,
        {n: _set_scores(sets[n], found[n], scores, n) for n in scores},
        calibration,
        {name: extracted.skipped for name, extracted in found.items()},
        {},
        {},
        {},
    )


def _network(
    plan: Plan, config: ConfigDict, restored: Restored, folder: epath.Path | None
) -> kept.Network:
    extras = {s.extra.name: s.extra for s in plan.scorers.values() if s.extra is not None}
    return kept.Network(
        config,
        plan.mesh,
        plan.net,
        restored.params,
        restored.stats,
        plan.fields,
        tuple(extras.values()),
        folder=folder,
    )


def judge(
    plan: Plan,
    fitted: dict[str, Scorer],
    found: Found,
    suffix: str = "",
    asked: tuple[str, ...] | None = None,
) -> Judged:
    """Fits every scorer on train and scores the other sets, one scorer after the other.

    suffix: of the scorers' names in the result. asked: scorers that must not fail; None = all.

    Raises:
      ValueError: what a scorer that was asked for refuses; no scorer is left.
    """
    judged = Judged({name: {} for name in found if name != TRAIN}, {}, {})
    first = jax.process_index() == 0
    label = f"scores{suffix}"
    with Progress(len(fitted), unit="scorers", label=label, enabled=first) as bar:
        for name, scorer in fitted.items():
            try:
                state, scores = _fit_and_score(scorer, found, plan)
            except ValueError as error:
                if asked is None or name in asked or len(fitted) == 1:
                    raise ValueError(f"scorer {name}{suffix}: {error}") from error
                judged.failed[name] = str(error)
                continue
            for set_name, values in scores.items():
                judged.scores[set_name][name + suffix] = values
            judged.facts[name + suffix] = scorer.facts(state)
            bar.update()
    if not judged.facts:
        name, reason = next(iter(judged.failed.items()))
        raise ValueError(
            f"none of {len(judged.failed)} scorers could run, the first is {name}: {reason}"
        )
    return judged


def _fit_and_score(scorer: Scorer, found: Found, plan: Plan) -> tuple[PyTree, Any]:
    state = scorer.fit(found[TRAIN].features)
    scores = {}
    for name, extracted in found.items():
        if name == TRAIN:
            continue
        try:
            scores[name] = scorers.run(scorer, state, extracted.features, plan.mesh)
        except ValueError as error:
            raise ValueError(f"set {name}: {error}") from error
    return state, scores


def _merged(judged: Judged, more: Judged) -> Judged:
    scores = {name: judged.scores[name] | more.scores[name] for name in judged.scores}
    return Judged(scores, judged.facts | more.facts, judged.failed)


def _thresholds(
    judged: Judged, calibration: dict[str, np.ndarray], keep: float
) -> dict[str, dict[str, Any]]:
    """{scorer: {"threshold", "kept_test": share of test images at or below it, "facts"}}."""
    out = {}
    for name, scores in calibration.items():
        threshold = metrics.threshold(scores, keep)
        test = judged.scores[TEST][name]
        out[name] = {
            "threshold": threshold,
            "kept_test": float(np.mean(test <= threshold)),
            "facts": judged.facts[name],
        }
    return out


def _metrics(
    test: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    by_scorer: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    return {
        name: metrics.all_metrics(test[name], values)
        | {"rejected": float(np.mean(values > by_scorer[name]["threshold"]))}
        for name, values in scores.items()
    }


def _add_intervals(
    by_set: dict[str, dict[str, dict[str, Any]]],
    by_group: dict[str, dict[str, dict[str, float]]],
    groups: dict[str, tuple[str, ...]],
    scores: Scores,
    resamples: int,
) -> None:
    """auroc_low and auroc_high: 95 % bootstrap intervals of every set, and of the groups' means."""
    if not (resamples and by_set):
        return
    for scorer in scores[TEST]:
        outside = {name: scores[name][scorer] for name in by_set}
        drawn = bootstrap_auroc(scores[TEST][scorer], outside, resamples)
        for name, values in drawn.items():
            low, high = interval(values)
            by_set[name][scorer] |= {"auroc_low": low, "auroc_high": high}
        for group, names in groups.items():
            if names:
                low, high = interval(np.mean([drawn[name] for name in names], 0))
                by_group[group][scorer] |= {"auroc_low": low, "auroc_high": high}


def _set_scores(source: Source, extracted: Extracted, scores: Scores, name: str) -> SetScores:
    labels = extracted.features.labels
    return SetScores(
        [source.name(int(row)) for row in extracted.rows],
        extracted.rows,
        None if labels is None else np.asarray(labels),
        scores[name],
        {s: metrics.ood_rank(scores[TEST][s], values) for s, values in scores[name].items()},
    )
