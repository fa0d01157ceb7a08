"""Runs that are one ensemble: found under one folder, checked, each a network that can be asked."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ood_jax import kept, place
from ood_jax.checkpoint import FREE_KEYS, Restored, restore_for_scoring, stages_in
from ood_jax.types import Net


class Member(NamedTuple):
    """One trained classifier."""

    workdir: epath.Path
    restored: Restored

    @property
    def seed(self) -> int:
        return self.restored.config.seed


class Kind(NamedTuple):
    """What makes runs one ensemble.

    keys: a member's config -> the keys, "a.b" -> value, that must be the same in all, FREE_KEYS
    aside; raises ValueError for a run that is no member. differ: in what they may differ, in words.
    sweep: what follows `python -m ood_jax.sweep` to train them, but for --workdir. recipe: its
    file.
    """

    keys: Callable[[ConfigDict], dict[str, Any]]
    differ: str
    sweep: str
    recipe: str


def gathered(root: str, kind: Kind) -> tuple[Member, ...]:
    """The finished runs under `root`, by seed; one that is not finished is warned of on stderr.

    Raises:
      ValueError: no checkpoint, a run that is no member, runs that differ in more than `kind`
        allows and what changes no number of them (checkpoint.FREE_KEYS), or none that is trained
        to its end.
    """
    found = []
    for workdir in _workdirs(place.place(root), kind):
        if any(name.isdecimal() for name in place.names(workdir / "checkpoints")):
            found.append(Member(workdir, restore_for_scoring(str(workdir))))
        else:
            _leave_out(workdir, "it has no checkpoint yet")
    if not found:
        raise ValueError(
            f"no checkpoint in {root}: train the members first, python -m ood_jax.sweep"
            f" {kind.sweep} --workdir={root}"
        )
    found.sort(key=lambda member: member.seed)
    _check_one_recipe(found, kind)
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
    return tuple(finished)


def _workdirs(root: epath.Path, kind: Kind) -> list[epath.Path]:
    if place.kind(root) != "folder":
        raise ValueError(f"--workdir={root} is no folder: give the --workdir of the sweep")
    if stages := stages_in(str(root)):
        raise ValueError(
            f"--workdir={root} is a run of the stages {', '.join(stages)}, not a sweep of"
            f" classifiers: see {kind.recipe}"
        )
    return place.holding(root, "checkpoints")


def _leave_out(workdir: epath.Path, reason: str) -> None:
    print(f"warning: {workdir} is left out: {reason}", file=sys.stderr, flush=True)


def _check_one_recipe(found: list[Member], kind: Kind) -> None:
    first, ours = found[0], _keys(found[0], kind)
    for other in found[1:]:
        theirs = _keys(other, kind)
        for key in sorted(ours.keys() | theirs.keys()):
            if key.startswith(FREE_KEYS) or ours.get(key) == theirs.get(key):
                continue
            raise ValueError(
                f"{first.workdir} and {other.workdir} are runs of two recipes: {key} ="
                f" {ours.get(key, 'absent')!r} and {theirs.get(key, 'absent')!r}; give the folder"
                f" of runs that differ in {kind.differ} alone"
            )


def _keys(member: Member, kind: Kind) -> dict[str, Any]:
    try:
        return kind.keys(member.restored.config)
    except ValueError as error:
        raise ValueError(f"{member.workdir}: {error}") from error


def check_once(found: tuple[Member, ...], facts: list[str]) -> None:
    """Refuses two members of which the same is true, such as "have seed 1".

    Raises:
      ValueError: naming both.
    """
    first: dict[str, Member] = {}
    for member, fact in zip(found, facts, strict=True):
        if fact in first:
            raise ValueError(
                f"{first[fact].workdir} and {member.workdir} both {fact}, and a classifier counts"
                " once: move one of them away"
            )
        first[fact] = member


def check_rows(
    first: Member, rows: np.ndarray, other: Member, theirs: np.ndarray, name: str
) -> None:
    """Refuses two members that have not read the same images, int32 [N] each, of the set `name`.

    Raises:
      ValueError: naming both.
    """
    if not np.array_equal(rows, theirs):
        raise ValueError(
            f"{other.workdir} and {first.workdir} have not read the same images of {name}: run the"
            " command again when all can be read"
        )


def network(
    member: Member, *, config: ConfigDict | None = None, net: Net | None = None
) -> kept.Network:
    """`kept.of_checkpoint` of the member, kept in its workdir where that can be written."""
    found = kept.of_checkpoint(member.restored, member.workdir, config=config, net=net)
    return found._replace(folder=kept.folder_in(member.workdir))
