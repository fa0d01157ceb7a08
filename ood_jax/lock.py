"""One run to a workdir: a second one is refused, and the lock dies with its process.

The lock is flock(2) of WORKDIR/.lock, which the kernel takes back however the process ends, so none
is ever stale. NFS passes it on to the server from version 4 on and may not before that; where the
workdir is on object storage (gs://, s3://) there is no such thing and nothing is locked: there the
one who starts runs must see to it that no two have one workdir.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ood_jax.place import is_remote, place

FILE = ".lock"


@contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Holds the lock of `workdir`, a folder that is there; processes of one run share it.

    Raises:
      ValueError: another run holds it, naming its host, process and since when.
    """
    if is_remote(workdir):
        yield
        return
    handle, holder = None, ""
    if jax.process_index() == 0:
        handle, holder = _take(place(workdir) / FILE)
    refused = handle is None
    if jax.process_count() > 1:  # the first process has the lock for all, or none goes on
        refused = bool(multihost_utils.broadcast_one_to_all(np.array(refused, np.int32)))
    try:
        if refused:
            who = holder or "see what the first process says"
            raise ValueError(
                f"--workdir={workdir} is in use by another run ({who}): wait for its end, stop it,"
                " or use another --workdir"
            )
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(path: epath.Path) -> tuple[int | None, str]:
    """(the open file that holds the lock, ""), or (None, who holds it)."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by workers
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None, _holder(path)
    except OSError:  # a file system that knows no locks
        return handle, ""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(handle, 0)
    os.pwrite(
        handle,
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(),
        0,
    )
    return handle, ""


def _holder(path: epath.Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is writing that now
        return "it began just now"
