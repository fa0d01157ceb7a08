"""Classifiers that differ in nothing but their seed: those of a union of sets, averaged."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ood_jax import confusion, kept, models, plan
from ood_jax.config import flat
from ood_jax.data.source import Source
from ood_jax.data.sources import open_source
from ood_jax.members import Kind, Member, check_once, check_rows, gathered, network


class Judged(NamedTuple):
    """What the members say of the test images that could be read.

    log_c: float64 [N, C], log of the mean over members of their probabilities (Eq. 3). rows: int32
    [N], the test set's numbers of these images. labels: int32 [N]. accuracies: one a member.
    """

    log_c: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    accuracies: tuple[float, ...]


def _but_seed(config: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if key != "seed"}


CLP = Kind(_but_seed, "their seed", "--config=configs/clp.py --seeds=0,1,2,3,4", "configs/clp.py")


def members(root: str) -> tuple[Member, ...]:
    """The finished runs under `root`, by seed; one that is not finished is warned of on stderr.

    Raises:
      ValueError: see `gathered`, of runs that differ in more than their seed; a seed twice.
    """
    found = gathered(root, CLP)
    check_once(found, [f"have seed {member.seed}" for member in found])
    return found


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
    net = models.build(found[0].restored.config)
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    accuracies: list[float] = []

    def each() -> Iterator[np.ndarray]:
        for member in found:
            asked = network(member, net=net)._replace(fields=("logits",))
            extracted = kept.extract(asked, {plan.TEST: test})[plan.TEST]
            if rows:
                check_rows(found[0], rows[0], member, extracted.rows, "data.test")
            rows.append(extracted.rows)
            labels.append(np.asarray(extracted.features.labels))
            log_p = confusion.log_softmax(np.asarray(extracted.features.logits))
            accuracies.append(confusion.accuracy(log_p, labels[0]))
            yield log_p

    log_c = confusion.log_expected(each())
    return Judged(log_c, rows[0], labels[0], tuple(accuracies))
