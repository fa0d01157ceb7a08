"""The sets whose norms are measured: the run's own, those asked for, its training outliers."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ood_jax import plan as plans
from ood_jax.data.pipeline import decoded, fits
from ood_jax.data.source import Source, from_array, take
from ood_jax.data.sources import open_source

OUTLIERS = "train outliers"  # with a space, which no name of an OOD set has
FEWEST = 2  # images: uniformity is of pairs


class Part(NamedTuple):
    """A set. role: train, test, near, far, other or outliers. turns: its images are turned by so
    many quarter turns, in turn."""

    role: str
    source: Source
    turns: tuple[int, ...] = (0,)


def parts(config: ConfigDict, plan: plans.Plan, ood: dict[str, str]) -> dict[str, Part]:
    """All sets by name. plan: of `config`. ood: {NAME: SOURCE} beside the OOD sets of `config`.

    Raises:
      ValueError: a set that cannot be opened, one of less than two images, a name given twice.
    """
    roles = {plans.TRAIN: "train", plans.TEST: "test"}
    roles |= {name: group for group, names in plan.groups.items() for name in names}
    out = {name: Part(roles[name], one) for name, one in plan.sets.items() if name in roles}
    for name, one in plans.check(config, ood).sets.items() if ood else ():
        if name in ood and name in out:
            raise ValueError(f"--ood={name}=...: the run has a set of that name; choose another")
        if name in ood:
            out[name] = Part("other", one)
    if outliers := _outliers(config, out[plans.TRAIN].source):
        out[OUTLIERS] = outliers
    for name, part in out.items():
        if len(part.source) < FEWEST:
            raise ValueError(
                f"{name} = {part.source.spec!r} has {len(part.source)} image, and uniformity is of"
                " pairs of images: give two or more"
            )
    return out


def _outliers(config: ConfigDict, train: Source) -> Part | None:
    """What the run trained on as outliers, where it did; of self-OECL turned images (Eq. 8)."""
    if config.method.get("outliers") == "self":
        return Part("outliers", train, tuple(config.method.outlier_shifts))
    if not config.data.auxiliary:
        return None
    return Part("outliers", open_source(config.data.auxiliary, root=config.data.root))


def choose(source: Source, count: int) -> Source:
    """At most `count` images, one at random of each of as many equal stretches of the set.

    The same for the same number of images. Every n-th would see one class of some sets.
    """
    if len(source) <= count:
        return source
    starts = np.arange(count + 1) * len(source) // count
    drawn = np.random.default_rng(0).random(count)
    rows = starts[:-1] + (drawn * np.diff(starts)).astype(np.int64)
    return take(source, rows, source.spec)


def held(parts: dict[str, Part], size: int, memory: int) -> dict[str, Part]:
    """Each set decoded once for all checkpoints where it fits; with damaged images, as it is."""

    def whole(source: Source) -> Source:
        if not fits(source, size, memory):
            return source
        images, good = decoded(source, size)
        return from_array(source.spec, images) if good.all() else source

    return {name: part._replace(source=whole(part.source)) for name, part in parts.items()}
