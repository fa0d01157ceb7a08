"""Is a checkpoint still what was written? A seal in its folder has every file's bytes and CRC-32.

The seal is written before the checkpoint gets its name, so what is lost or changed later is seen.
On object storage it has the bytes alone: such stores check what they hold themselves.
"""

import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.utils import checkpoint_steps

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
    names = sorted(name for part in PARTS for name in _files(folder / part, f"{part}/"))
    facts = {name: _facts(folder / name) for name in names}
    (folder / SEAL).write_text(json.dumps(facts))


def fault(folder: epath.Path) -> str:
    """What is wrong with the checkpoint in `folder`; "" = nothing.

    Raises:
      PermissionError: it may not be read.
    """
    try:
        if not (folder / SEAL).exists():
            return _unsealed(folder)
        sealed = json.loads((folder / SEAL).read_text())
        return next(filter(None, (_differs(folder, *one) for one in sealed.items())), "")
    except PermissionError:
        raise
    except _BROKEN as error:
        return f"{SEAL}: {error}"


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
    steps = checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        return
    kept = newest(folder, steps)
    if jax.process_index() == 0:
        for step in steps:
            if step > kept:
                aside = folder.parent / "corrupt" / str(step)
                aside.parent.mkdir(exist_ok=True)
                if aside.exists():
                    aside.rmtree()
                (folder / str(step)).rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("corrupt checkpoints are set aside")


def _said(faults: dict[int, str]) -> str:
    """`faults` in words: "step 8 (seal.json is missing), step 6 (...)"."""
    return ", ".join(f"step {step} ({' '.join(why.split())})" for step, why in faults.items())


def _differs(folder: epath.Path, name: str, sealed: list[int]) -> str:
    path = folder / name
    if not path.exists():
        return f"{name} is missing"
    if path.stat().length != sealed[0]:
        return f"{name} has {path.stat().length:,} bytes of {sealed[0]:,}"
    return "" if _facts(path) == sealed else f"{name} has other bytes than were written"


def _facts(path: epath.Path) -> list[int]:
    """[bytes], and on a local disk [bytes, CRC-32]."""
    if "://" in str(path):
        return [path.stat().length]
    length = check = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            length, check = length + len(chunk), zlib.crc32(chunk, check)
    return [length, check]


def _files(folder: epath.Path, prefix: str) -> Iterator[str]:
    """`prefix` and the names of all files below `folder`."""
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield from _files(path, f"{name}/")
        else:
            yield name


def _unsealed(folder: epath.Path) -> str:
    """The fault of a checkpoint from before there were seals, or whose deletion was cut short.

    Its array store is read through: lost and cut files are seen, other bytes of an array are not.
    """
    import tensorstore

    try:
        json.loads((folder / "config" / "metadata").read_text())
        json.loads((folder / "state" / "_METADATA").read_text())
        place = str(folder / "state")
        base = place if "://" in place else f"file://{place}"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{base}/"}).result()
        names = store.list().result()
        # What lay in a file that is gone reads as nothing, without an error.
        lost = [name for name in names if not store.read(name).result().value]
    except PermissionError:
        raise
    except _BROKEN as error:
        return f"no {SEAL}, and {error}"
    if lost or not names:
        return f"no {SEAL}, and {lost[0].decode() if lost else 'every array'} is lost"
    return ""
