"""Files that are whole or absent: written beside their place, then moved into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` if no error comes.

    Raises:
      ValueError: the folder cannot be made or written.
    """
    fresh = path.with_name(f".{os.getpid()}.{path.name}")  # readers go by the end of the name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        os.replace(fresh, path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}): name a place that can"
        ) from None
    finally:
        with suppress(OSError):  # its folder may be a file, or forbidden
            fresh.unlink()


def check_writable(folder: Path) -> None:
    """Refuses a folder for results before hours of compute; makes it where it is not there.

    Raises:
      ValueError: it cannot be made or written.
    """
    with replaced(folder / ".writable") as fresh:
        fresh.touch()
    (folder / ".writable").unlink(missing_ok=True)
