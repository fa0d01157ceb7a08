"""Classifiers that differ in nothing but their seed: found under one folder, checked, averaged."""

import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from ood_jax import confusion, features, kept, models, plan
from ood_jax.atomic import check_writable
from ood_jax.checkpoint import FREE_KEYS, Restored, restore_for_scoring, stages_in
from ood_jax.config import flat
from ood_jax.data.source import Source
from ood_jax.data.sources import open_source
from ood_jax.place import holding, kind, names, place


class Member(NamedTuple):
    """One trained classifier."""

    workdir: epath.Path
    restored: Restored

    @property
    def seed(self) -> int:
        return self.restored.config.seed


class Judged(NamedTuple):
    """What the members say of the test images that could be read.

    log_c: float64 [N, C], log of the mean over members of their probabilities (Eq. 3). rows: int32
    [N], the test set's numbers of these images. labels: int32 [N]. accuracies: one a member.
    """

    log_c: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    accuracies: tuple[float, ...]


def members(root: str) -> tuple[Member, ...]:
    """The finished runs under `root`, by seed; one that is not finished is warned of on stderr.

    Raises:
      ValueError: no checkpoint, runs that differ in more than their seed and what changes no
        number of them (checkpoint.FREE_KEYS), a seed twice, or none that is trained to its end.
    """
    found = []
    for workdir in _workdirs(place(root)):
        if any(name.isdecimal() for name in names(workdir / "checkpoints")):
            found.append(Member(workdir, restore_for_scoring(str(workdir))))
        else:
            _leave_out(workdir, "it has no checkpoint yet")
    if not found:
        raise ValueError(
            f"no checkpoint in {root}: train the members first, python -m ood_jax.sweep"
            f" --config=configs/clp.py --workdir={root} --seeds=0,1,2,3,4"
        )
    found.sort(key=lambda member: member.seed)
    _check_one_recipe(found)
    finished = []
    for member in found:
        step, total = member.restored.step, member.restored.config.train.steps
        if step >= total:
            finished.append(member)
        else:
            _leave_out(member.workdir, f"it is at step {step:,} of {total:,}")
    if not finished:
        raise ValueError(
            f"none of {len(found)} runs in {root} is trained to its end: go on with the same"
            " sweep command"
        )
    _check_seeds(finished)
    return tuple(finished)


def _workdirs(root: epath.Path) -> list[epath.Path]:
    if kind(root) != "folder":
        raise ValueError(f"--workdir={root} is no folder: give the --workdir of the sweep")
    if stages := stages_in(str(root)):
        raise ValueError(
            f"--workdir={root} is a run of the stages {', '.join(stages)}, not a sweep of"
            " classifiers: see configs/clp.py"
        )
    return holding(root, "checkpoints")


def _leave_out(workdir: epath.Path, reason: str) -> None:
    print(f"warning: {workdir} is left out: {reason}", file=sys.stderr, flush=True)


def _check_one_recipe(found: list[Member]) -> None:
    first = found[0]
    ours = flat(first.restored.config)
    for other in found[1:]:
        theirs = flat(other.restored.config)
        for key in sorted(ours.keys() | theirs.keys()):
            if key == "seed" or key.startswith(FREE_KEYS) or ours.get(key) == theirs.get(key):
                continue
            raise ValueError(
                f"{first.workdir} and {other.workdir} are runs of two recipes: {key} ="
                f" {ours.get(key, 'absent')!r} and {theirs.get(key, 'absent')!r}; give the folder"
                " of runs that differ in their seed alone"
            )


def _check_seeds(found: list[Member]) -> None:
    for before, member in itertools.pairwise(found):
        if before.seed == member.seed:
            raise ValueError(
                f"{before.workdir} and {member.workdir} both have seed {member.seed}, and a"
                " classifier counts once: move one of them away"
            )


def open_union(member: Member) -> Source:
    """The union of labelled test sets that a member was trained for, all of it checked.

    Raises:
      ValueError: one set only, train and test unions that do not agree, logits of another number of
        classes, an image without a label, a set without a test image.
    """
    config = member.restored.config
    train, test = (
        open_source(config.data[key], root=config.data.root) for key in ("train", "test")
    )
    for key, source in (("train", train), ("test", test)):
        if len(source.parts) < 2:
            raise ValueError(
                f"data.{key} = {config.data[key]!r} is one set, and confusion is between two or"
                " more: train on a union, NAME=SOURCE + NAME=SOURCE"
            )
    _check_agree(train, test)
    classes = sum(len(part.classes) for part in test.parts)
    outputs = config.head.outputs
    if outputs != classes:
        raise ValueError(
            f"the union has {classes} classes and the members {outputs} outputs: train with"
            f" --config.head.outputs={classes}"
        )
    _check_labels(test)
    return test


def _check_agree(train: Source, test: Source) -> None:
    names = [[part.name for part in source.parts] for source in (train, test)]
    if names[0] != names[1]:
        raise ValueError(
            f"data.train is a union of {', '.join(names[0])}, data.test of {', '.join(names[1])}:"
            " give both the same sets in the same order"
        )
    for ours, theirs in zip(train.parts, test.parts, strict=True):
        if len(ours.classes) != len(theirs.classes):
            raise ValueError(
                f"the set {ours.name} has {len(ours.classes)} classes in data.train and"
                f" {len(theirs.classes)} in data.test: give sets of the same classes"
            )


def _check_labels(test: Source) -> None:
    labels = test.labels
    assert labels is not None  # of a union every image has one, or -1
    if labels.min() < 0:
        raise ValueError(
            f"data.test: {int((labels < 0).sum())} of {len(labels)} images have no label, and"
            " confusion is of classes; use labelled sets"
        )
    for part in test.parts:
        own = np.arange(part.first, part.first + len(part.classes))
        missing = int((~np.isin(own, labels)).sum())
        if missing == len(own):
            raise ValueError(f"data.test has no image of {part.name}: widen its slice or classes")
        if missing:
            print(
                f"warning: {missing} of {len(own)} classes of {part.name} have no test image, so"
                " nothing is said of them",
                file=sys.stderr,
                flush=True,
            )


def judge(found: tuple[Member, ...], test: Source) -> Judged:
    """All members' probabilities of `test`; features are kept in their workdirs, as scoring does.

    Raises:
      ValueError: members that have not read the same images; no image can be read.
    """
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    accuracies: list[float] = []

    def each() -> Iterator[np.ndarray]:
        for member in found:
            extracted = _extracted(member, test)
            if rows and not np.array_equal(rows[0], extracted.rows):
                raise ValueError(
                    f"{member.workdir} and {found[0].workdir} have not read the same images of"
                    " data.test: run the command again when all can be read"
                )
            rows.append(extracted.rows)
            labels.append(np.asarray(extracted.features.labels))
            log_p = confusion.log_softmax(np.asarray(extracted.features.logits))
            accuracies.append(confusion.accuracy(log_p, labels[0]))
            yield log_p

    log_c = confusion.log_expected(each())
    return Judged(log_c, rows[0], labels[0], tuple(accuracies))


def _extracted(member: Member, test: Source) -> features.Extracted:
    """The member's logits of `test`: those that its own scoring kept, where it has."""
    restored, workdir = member.restored, member.workdir
    config = restored.config
    net = models.build(config)
    shapes = jax.eval_shape(lambda: models.init_params(net, config))
    plan.check_model(shapes, restored, str(workdir))
    network = kept.Network(
        config,
        plan.scoring_mesh(config),
        net,
        restored.params,
        restored.stats,
        ("logits",),
        folder=_features(workdir),
    )
    return kept.extract(network, {plan.TEST: test})[plan.TEST]


def _features(workdir: epath.Path) -> epath.Path | None:
    """W/features; None where W cannot be written, as in another user's run."""
    try:
        check_writable(workdir)
    except ValueError:
        return None
    return workdir / "features"
