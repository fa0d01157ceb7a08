"""Arrays kept in npz files, and what tells whether they are still the right ones."""

import hashlib
import json
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from ood_jax import npz, place
from ood_jax.atomic import replaced
from ood_jax.data.union import singles
from ood_jax.types import PyTree
from ood_jax.untrusted import MISSHAPEN, parse_json

SCHEMA = 2  # of the files


def cached(
    path: epath.Path | None,
    meta: dict[str, Any],
    compute: Callable[[], dict[str, np.ndarray]],
    serves: Callable[[dict[str, Any], dict[str, Any]], bool] = operator.eq,
) -> dict[str, np.ndarray]:
    """`compute()`, or what an earlier call wrote to the npz `path`.

    path: None = no file. serves: (meta of the file, meta) -> is it what is wanted? Several
    processes always compute, since not all of them may see the file; the first one writes.
    """
    meta = json.loads(json.dumps({"schema": SCHEMA, **meta}))
    if path is not None and jax.process_count() == 1:
        found = read(path, lambda theirs: serves(theirs, meta))
        if found is not None:
            return found
    held: dict[str, Any] = compute()
    if path is not None and jax.process_index() == 0:
        with replaced(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **held)
    return held


def read(
    path: epath.PathLike, serves: Callable[[dict[str, Any]], bool]
) -> dict[str, np.ndarray] | None:
    """The arrays at `path`; None = there is no file, it is broken, or its meta does not serve."""
    try:
        with npz.opened(path) as file:
            if not serves(parse_json(str(file["meta"]))):
                return None
            return {name: file[name] for name in file.names if name != "meta"}
    except (OSError, *MISSHAPEN):
        return None


def digest(tree: PyTree) -> str:
    """SHA-256 over paths, shapes, types and bytes of all arrays in `tree`."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def stamp(spec: str, root: str) -> list[Any] | None:
    """What changes with the file or folder that a source is read from, if any: `place.stamp`.

    Of a union a list of them.
    """
    ones = singles(spec)
    return _stamp(ones[0], root) if len(ones) == 1 else [_stamp(one, root) for one in ones]


def _stamp(spec: str, root: str) -> list[Any] | None:
    kind, _, where = spec.partition(":")
    if kind not in ("npz", "list", "folder"):
        return None
    path = place.under(root, where)
    if kind == "list" and not place.kind(path):  # FILE@FOLDER
        path = place.under(root, where.rpartition("@")[0])
    return place.stamp(path)
