"""Is a checkpoint still what was written? A seal in its folder has every file's bytes and CRC-32.

The seal is written before the checkpoint gets its name, so what is lost or changed later is seen.
On object storage it has the bytes alone: such stores check what they hold themselves.
"""

import json
import sys
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.utils import checkpoint_steps

from ood_jax.place import is_remote, kind, sizes, told

SEAL = "seal.json"
PARTS = ("config", "state")  # folders that are sealed; files beside them are orbax's own notes
_CHUNK = 1 << 22  # bytes read at once
# What a reader meets in files that are broken; a file that it may not read is another matter.
_BROKEN = (OSError, ValueError, TypeError, AttributeError, RecursionError)


class Newest(NamedTuple):
    """step: of the newest whole checkpoint, None = none is. faults: of the newer ones, by step."""

    step: int | None
    faults: dict[int, str]


def seal(folder: epath.Path) -> None:
    """Writes down what the files of `folder` are, all of which are complete.

    Raises:
      OSError: one cannot be read, or the seal not be written.
    """
    found = sorted((name, size) for name, size in sizes(folder).items() if _sealed(name))
    facts = {name: _facts(folder / name, size) for name, size in found}
    with told(folder):
        (folder / SEAL).write_text(json.dumps(facts))


def _sealed(name: str) -> bool:
    return name.startswith(tuple(f"{part}/" for part in PARTS))


def fault(folder: epath.Path) -> str:
    """What is wrong with the checkpoint in `folder`; "" = nothing.

    Raises:
      PermissionError: it may not be read. OSError: object storage does not answer.
    """
    try:
        found = sizes(folder)
        if SEAL not in found:
            return _unsealed(folder)
        with told(folder / SEAL):
            text = (folder / SEAL).read_text()
        sealed = json.loads(text)
        faults = (_differs(folder, name, facts, found) for name, facts in sealed.items())
        return next(filter(None, faults), "")
    except _BROKEN as error:
        _reraise_passing(error, folder)
        return f"{SEAL}: {error}"


def _reraise_passing(error: Exception, folder: epath.Path) -> None:
    """What says nothing of the files: they may not be read, or their storage does not answer."""
    lost = isinstance(error, FileNotFoundError) or not isinstance(error, OSError)
    if isinstance(error, PermissionError) or (is_remote(folder) and not lost):
        raise error


def newest_whole(folder: epath.Path, steps: Sequence[int]) -> Newest:
    """The newest of the checkpoints of `steps` in `folder` that has no fault.

    Raises:
      PermissionError: one may not be read.
    """
    faults: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        found = fault(folder / str(step))
        if not found:
            return Newest(step, faults)
        faults[step] = found
    return Newest(None, faults)


def newest(folder: epath.Path, steps: Sequence[int]) -> int:
    """`newest_whole`, on which all processes agree; a warning names the newer, corrupt ones.

    Raises:
      ValueError: none is whole.
    """
    found = Newest(None, {})
    if jax.process_index() == 0:  # so that the files are read once
        found = newest_whole(folder, steps)
        if found.faults and found.step is not None:
            print(
                f"warning: corrupt checkpoints in {folder}: {_said(found.faults)};"
                f" that of step {found.step} is used",
                file=sys.stderr,
                flush=True,
            )
    step = -1 if found.step is None else found.step
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.array(step, np.int32)))
    if step < 0:
        raise ValueError(
            f"no checkpoint in {folder} is whole: {_said(found.faults)}. Bring one back from"
            " a copy, name another --step, or delete them to train anew"
        )
    return step


def set_aside(folder: epath.Path) -> None:
    """Moves corrupt checkpoints that are newer than the newest whole one to WORKDIR/corrupt.

    Else they would stand in the way when their steps are saved again.

    Raises:
      ValueError: there are checkpoints, and none is whole.
    """
    with told(folder):
        steps = checkpoint_steps(folder) if kind(folder) else []
    if not steps:
        return
    kept = newest(folder, steps)
    if jax.process_index() == 0:
        for step in steps:
            if step > kept:
                with told(folder):
                    _move(folder / str(step), folder.parent / "corrupt" / str(step))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("corrupt checkpoints are set aside")


def _move(folder: epath.Path, aside: epath.Path) -> None:
    """Moves a folder, in place of what is there."""
    aside.parent.mkdir(exist_ok=True)
    if is_remote(aside):  # which has folders only where something is in them
        (aside.parent / ".folder").touch()
    if aside.exists():
        aside.rmtree()
    folder.rename(aside)


def _said(faults: dict[int, str]) -> str:
    """`faults` in words: "step 8 (seal.json is missing), step 6 (...)"."""
    return ", ".join(f"step {step} ({' '.join(why.split())})" for step, why in faults.items())


def _differs(folder: epath.Path, name: str, sealed: list[int], found: dict[str, int]) -> str:
    if name not in found:
        return f"{name} is missing"
    if found[name] != sealed[0]:
        return f"{name} has {found[name]:,} bytes of {sealed[0]:,}"
    same = _facts(folder / name, found[name]) == sealed
    return "" if same else f"{name} has other bytes than were written"


def _facts(path: epath.Path, size: int) -> list[int]:
    """[bytes], and on a local disk [bytes, CRC-32]."""
    if is_remote(path):
        return [size]
    length = check = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            length, check = length + len(chunk), zlib.crc32(chunk, check)
    return [length, check]


def _unsealed(folder: epath.Path) -> str:
    """The fault of a checkpoint from before there were seals, or whose deletion was cut short.

    Its array store is read through: lost and cut files are seen, other bytes of an array are not.
    """
    import tensorstore

    try:
        for name in ("config/metadata", "state/_METADATA"):
            with told(folder):
                text = (folder / name).read_text()
            json.loads(text)
        state = str(folder / "state")
        base = state if is_remote(state) else f"file://{state}"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{base}/"}).result()
        names = store.list().result()
        # What lay in a file that is gone reads as nothing, without an error.
        lost = [name for name in names if not store.read(name).result().value]
    except _BROKEN as error:
        _reraise_passing(error, folder)
        return f"no {SEAL}, and {error}"
    if lost or not names:
        return f"no {SEAL}, and {lost[0].decode() if lost else 'every array'} is lost"
    return ""
