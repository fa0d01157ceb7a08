"""Post-hoc scores by name. A score is fitted on train features; higher = more OOD, everywhere."""

import difflib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.types import Features, PyTree, Scorer

_MODULES = {
    "knn": ("exp_cosine", "knn"),
    "nnguide": ("nnguide",),
    "mahalanobis": ("mahalanobis", "mahalanobis_shared", "mahalanobis_relative"),
    "ssd": ("ssd",),
    "norm": ("norm", "norm_ensemble", "norm_mean", "cosine_norm_mean"),
    "csi": ("csi",),
    "logits": ("msp", "max_logit", "energy", "gen", "klm", "l1_discrepancy"),
    "last_layer": ("react", "gradnorm", "dice", "nci", "fdbd", "she"),
    "subspace": ("vim", "residual"),
    "odin": ("odin",),
    "rotation": ("rotation",),
    "gram": ("gram",),
}
NAMES = {
    name: f"{__name__}.{module}:{name}" for module, names in _MODULES.items() for name in names
}
ALL = "all"
ROWS = 4096  # test rows scored at once
UNIT = 128  # blocks are filled up to a multiple, so that few shapes are compiled


def build(name: str, config: ConfigDict, mesh: Mesh) -> Scorer:
    """The scorer `name`: one of NAMES, or a user's own as "pkg.module" or "pkg.module:function".

    The function (`build` where none is named) takes (`config.score`, mesh) and returns a Scorer.

    Raises:
      ValueError: no such name, module or function; what the function returns is no Scorer.
    """
    module, function = _find(name)
    scorer = getattr(module, function)(config, mesh)
    if not isinstance(scorer, Scorer):
        raise ValueError(
            f"scorer {name!r}: {function}(config, mesh) gave a {type(scorer).__name__};"
            " return an ood_jax.types.Scorer"
        )
    return scorer


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of scorers that `config.score.scorers` asks for; "all" = every one of NAMES.

    Raises:
      ValueError: none, or one twice.
    """
    listed = tuple(n for name in names for n in (NAMES if name == ALL else (name,)))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"score.scorers = {tuple(names)}: name one or more, each once")
    return tuple(dict.fromkeys(listed))


def run(scorer: Scorer, state: PyTree, features: Features, mesh: Mesh) -> np.ndarray:
    """The scores of any number of images: float64 [N]; blocks of rows, each over the whole mesh.

    Raises:
      ValueError: what the scorer refuses; scores that are not one number an image.
    """
    if scorer.streamed is not None:
        scores = np.asarray(scorer.streamed(state, features), np.float64)
    else:
        scores = _in_blocks(scorer, state, features, mesh)
    count = len(features.features)
    if scores.shape != (count,):
        raise ValueError(
            f"it gave scores {list(scores.shape)}; one number an image is needed, [{count}]"
        )
    if broken := int(np.isnan(scores).sum()):
        raise ValueError(
            f"{broken} of {count} scores are NaN: the network diverged, or the score is at fault"
        )
    return scores


def _in_blocks(scorer: Scorer, state: PyTree, features: Features, mesh: Mesh) -> np.ndarray:
    jitted = jax.jit(scorer.score, out_shardings=sharding.replicated(mesh))
    state = sharding.replicate(mesh, state)
    parts = []
    for count, block in _blocks(_read(scorer, features), mesh.size):
        try:
            found = jitted(state, _spread(mesh, block))
        except jax.errors.TracerArrayConversionError:
            raise ValueError(
                "its score cannot be traced: use jax.numpy in it, or give Scorer.streamed for NumPy"
            ) from None
        scores = np.asarray(jax.device_get(found), np.float64)
        parts.append(scores[:count] if scores.ndim else scores[None])  # refused by `run`
    return np.concatenate(parts)


def _read(scorer: Scorer, features: Features) -> Features:
    """The arrays of N rows that `score` may look at."""
    extra = {name: v for name, v in (features.extra or {}).items() if name in scorer.needs}
    return features._replace(labels=None, last_layer=None, extra=extra or None)


def _blocks(features: Features, devices: int) -> Iterator[tuple[int, Any]]:
    """(rows that count, the block); the last block is filled up with its last row."""
    total = len(features.features)
    unit = UNIT * devices
    size = min(-(-ROWS // unit), -(-total // unit)) * unit
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        yield (
            min(size, total - start),
            jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], features),
        )


def _spread(mesh: Mesh, block: Features) -> Features:
    """Rows over the mesh; with several processes each gives its own part of the same block."""
    split = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, split, lambda index: x[index]), block
    )


def _find(name: str) -> tuple[ModuleType, str]:
    path, _, function = NAMES.get(name, name).partition(":")
    function = function or "build"
    if "." not in path and ":" not in name:
        raise ValueError(_unknown(name))
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            raise  # the module exists; one of its own imports does not
        raise ValueError(_unknown(name)) from None
    if not hasattr(module, function):
        raise ValueError(
            f"scorer {name!r}: {path} has no function {function}(config, mesh) -> Scorer"
        )
    return module, function


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (
        f"no scorer {name!r}; {hint}there are {', '.join(NAMES)}, {ALL}, and any import path"
        " PKG.MODULE[:FUNCTION] or MODULE:FUNCTION on PYTHONPATH"
    )
