"""Post-hoc scores by name. A score is fitted on train features; higher = more OOD, everywhere."""

import importlib
from types import ModuleType

from ml_collections import ConfigDict

from ood_jax.types import Scorer

NAMES = {"exp_cosine": "ood_jax.scorers.knn:build"}


def build(name: str, config: ConfigDict) -> Scorer:
    """The scorer `name`: one of NAMES, or a user's own as "pkg.module" or "pkg.module:function".

    The function (`build` where none is named) takes `config.score` and returns a Scorer.

    Raises:
      ValueError: no such name, module or function.
    """
    module, function = _find(name)
    return getattr(module, function)(config)


def fields(name: str, config: ConfigDict) -> tuple[str, ...]:
    """The fields of Features that the scorer reads: its module's FIELDS, else config.feature.

    Raises:
      ValueError: no such name, module or function.
    """
    return tuple(getattr(_find(name)[0], "FIELDS", (config.feature,)))


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
        raise ValueError(f"scorer {name!r}: {path} has no function {function}(config) -> Scorer")
    return module, function


def _unknown(name: str) -> str:
    return (
        f"scorer {name!r} is none of {', '.join(NAMES)}, nor an import path PKG.MODULE[:FUNCTION]"
        " on PYTHONPATH"
    )
