"""Arrays kept in npz files, and what tells whether they are still the right ones."""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ood_jax.atomic import replaced
from ood_jax.types import PyTree

SCHEMA = 1  # of the files


def cached(
    path: Path | None, meta: dict[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`compute()`, or what an earlier call wrote to the npz `path` under exactly this `meta`.

    None = no file. Several processes always compute, since not all of them may see the file; the
    first one writes.
    """
    text = json.dumps({"schema": SCHEMA, **meta}, sort_keys=True)
    if path is not None and jax.process_count() == 1:
        found = _read(path, text)
        if found is not None:
            return found
    held: dict[str, Any] = compute()
    if path is not None and jax.process_index() == 0:
        with replaced(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, meta=np.array(text), **held)
    return held


def _read(path: Path, meta: str) -> dict[str, np.ndarray] | None:
    """The arrays at `path`; None = there is no file, it is broken, or its meta is another."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["meta"]) != meta:
                return None
            return {name: file[name] for name in file.files if name != "meta"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def digest(tree: PyTree) -> str:
    """SHA-256 over paths, shapes, types and bytes of all arrays in `tree`."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def stamp(spec: str, root: str) -> list[int] | None:
    """Change time (ns) and bytes of the file or folder that a source is read from, if any."""
    kind, _, where = re.sub(r"(\[[^\[\]]*\])*$", "", spec).partition(":")
    path = Path(root).expanduser() / Path(where).expanduser()
    if kind not in ("npz", "list", "folder") or not path.exists():
        return None
    found = path.stat()
    return [found.st_mtime_ns, found.st_size]
