"""Files that are whole or absent: written beside their place, then moved into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from etils import epath

from ood_jax.place import is_remote, make_folder, place, reason, remove, send


@contextmanager
def replaced(path: epath.PathLike) -> Iterator[epath.Path]:
    """A path on disk to write to; it takes the place of `path` if no error comes.

    On a disk it is beside `path`; for object storage it is a temporary file.

    Raises:
      ValueError: the folder cannot be made or written.
      OSError: object storage does not take it.
    """
    path = place(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            near = epath.Path(folder) / path.name
            yield near
            send(near, path)
        return
    fresh = path.with_name(f".{os.getpid()}.{path.name}")  # readers go by the end of the name
    try:
        make_folder(path.parent)
        yield fresh
        os.replace(fresh, path)
    except OSError as error:
        if error.errno is None:  # not the system's: of what was read meanwhile
            raise
        raise ValueError(
            f"{path} cannot be written ({reason(error)}): name a place that can"
        ) from None
    finally:
        with suppress(OSError):  # its folder may be a file, or forbidden
            fresh.unlink()


def check_writable(folder: epath.PathLike) -> None:
    """Refuses a folder for results before hours of compute; makes it where it is not there.

    Raises:
      ValueError: it cannot be made or written.
    """
    probe = place(folder) / ".writable"
    try:
        with replaced(probe) as fresh:
            fresh.touch()
        remove(probe)
    except OSError as error:
        raise ValueError(
            f"{probe.parent} cannot be written ({reason(error)}): name a place that can"
        ) from None
