"""Which classes each classifier of a leave-out ensemble learns, and sets that are cut to them.

Vyas et al. 2018 (ELOC): the classes are divided into K parts, and each of K
classifiers sees one part as OOD images. Text and counts alone: nothing here opens a set.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ood_jax.cases import spans
from ood_jax.config import flat, put
from ood_jax.data.sources import filtered

CUT = ("data.train", "data.test", "score.calibration")  # sets of in-distribution images


def partition(classes: int, splits: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """The classes 0..classes-1 in `splits` parts, each ascending; sizes differ by at most 1.

    From NumPy's frozen RandomState, so that parts stay what they are: with seed 3, and splits that
    divide the classes, those of the public reproduction (YU1ut), which never leaves the rest out.

    Raises:
      ValueError: fewer than 2 parts, a part that leaves fewer than 2 classes, seed out of range.
    """
    if not 2 <= splits <= classes or classes - -(-classes // splits) < 2:
        raise ValueError(
            f"method.splits = {splits} of method.classes = {classes}: use 2 parts or more, at most"
            " one a class, and classes enough that 2 are left without any part"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"method.split_seed = {seed}: use 0 to 2**32 - 1")
    order = np.random.RandomState(seed).permutation(classes)
    return tuple(tuple(sorted(part.tolist())) for part in np.array_split(order, splits))


def left_out(method: ConfigDict) -> tuple[int, ...]:
    """The classes that the classifier `method.split` sees as OOD images, ascending.

    Raises:
      ValueError: see `partition`; no such part.
    """
    parts = partition(method.classes, method.splits, method.split_seed)
    if not 0 <= method.split < len(parts):
        raise ValueError(f"method.split = {method.split}: use 0 to {len(parts) - 1}")
    return parts[method.split]


def learnt(method: ConfigDict) -> tuple[int, ...]:
    """The other classes, ascending: what the classifier's outputs 0, 1, ... stand for."""
    return tuple(sorted(set(range(method.classes)) - set(left_out(method))))


def cut(config: ConfigDict) -> dict[str, Any]:
    """The keys that make `config`, whose sets have all classes, one of the classifiers.

    Its in-distribution sets keep the classes that it learns, numbered from 0; the train images of
    the others are data.auxiliary. Recipes call this.

    Raises:
      ValueError: see `left_out`.
    """
    own = flat(config)
    keys: dict[str, Any] = {key: filtered(own[key], _own(config)) for key in CUT if own[key]}
    others = f"[classes={spans(left_out(config.method))}]"
    keys["data.auxiliary"] = filtered(config.data.train, others)
    keys["head.outputs"] = len(learnt(config.method))
    return keys


def whole(config: ConfigDict) -> ConfigDict:
    """The config that `cut` was made of, but for data.auxiliary, which is "".

    Raises:
      ValueError: see `left_out`; sets or outputs that `cut` does not make of this method's keys.
    """
    config, own = config.copy_and_resolve_references(), flat(config)
    with config.unlocked():
        for key in CUT:
            if own[key] and not own[key].endswith(_own(config)):
                raise _disagrees(config, key, own[key], f"a set that ends in {_own(config)}")
            put(config, key, own[key].removesuffix(_own(config)))
        for key, expected in cut(config).items():
            if own[key] != expected:
                raise _disagrees(config, key, own[key], repr(expected))
        config.data.auxiliary, config.head.outputs = "", config.method.classes
    return config


def _own(config: ConfigDict) -> str:
    return f"[renumber={spans(learnt(config.method))}]"


def _disagrees(config: ConfigDict, key: str, have: Any, wanted: str) -> ValueError:
    m = config.method
    return ValueError(
        f"{key} = {have!r}, but split {m.split} of {m.splits} of {m.classes} classes needs"
        f" {wanted}: take the split by the recipe's argument, as in configs/eloc_cifar.py"
    )
