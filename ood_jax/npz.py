"""Arrays out of npz and npy files that anyone may have made.

NumPy allocates what a header says before it reads, and a zip archive says itself how large its
entries will be. Here both are held against the file first.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from etils import epath

from ood_jax import place

# What a compressed archive may unfold to: this much, or so many times the file. Deflate reaches
# 1,030 times with zeros; photographs stay below 2 and drawings below 10.
UNFOLDED_BYTES, UNFOLDED_TIMES = 1024**3, 16
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes
_ENCRYPTED = 0x1  # flag of an entry

# zipfile, zlib and NumPy on damaged bytes.
BROKEN = (
    *(ValueError, OSError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, MemoryError),
    zipfile.BadZipFile,
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Arrays:
    """An open npz: `names`, and the arrays by [name], each read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        self._left = max(UNFOLDED_BYTES, UNFOLDED_TIMES * size)
        found = [name for name in archive.namelist() if name.endswith(".npy")]
        self.names = tuple(dict.fromkeys(name.removesuffix(".npy") for name in found))

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises ValueError: it is not there, damaged, of objects, or too large for the file."""
        with _reasons():
            entry = self._archive.getinfo(f"{name}.npy")
            if entry.compress_type not in PACKED or entry.flag_bits & _ENCRYPTED:
                raise ValueError(f"{name} is packed as NumPy never does")
            if entry.compress_type != zipfile.ZIP_STORED:
                self._left -= entry.file_size
            if self._left < 0:
                raise ValueError(f"{name} unfolds to {entry.file_size:,} bytes, too many to trust")
            with self._archive.open(entry) as stream:
                check_header(stream, entry.file_size)
            with self._archive.open(entry) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)

    def all(self) -> dict[str, np.ndarray]:
        """Every array."""
        return {name: self[name] for name in self.names}


@contextmanager
def opened(path: epath.PathLike) -> Iterator[Arrays]:
    """The npz at `path`; of a remote one a copy on disk, as long as it is open.

    Raises:
      OSError: it cannot be opened.
      ValueError: it is none.
    """
    with place.local(epath.Path(path)) as near, open(near, "rb") as raw:
        with _reasons():
            archive = zipfile.ZipFile(raw)
        with archive:
            yield Arrays(archive, os.fstat(raw.fileno()).st_size)


def mapped(path: epath.PathLike) -> np.ndarray:
    """The array of an npy, which stays on disk (memory-mapped, read-only); a remote one as a copy,
    whose room on the disk is free again when nobody reads the array any more.

    Raises:
      OSError: a remote one cannot be copied.
      ValueError: it cannot be read, or its header says more than the file has.
    """
    with place.local(epath.Path(path)) as near, _reasons():
        with open(near, "rb") as file:
            check_header(file, os.fstat(file.fileno()).st_size)
        return np.lib.format.open_memmap(os.fspath(near), mode="r")


def check_header(file: IO[bytes] | Any, size: int) -> None:
    """Refuses an npy that says to be larger than its `size` bytes, or that holds objects.

    Raises:
      ValueError: that, or what NumPy raises on a damaged header.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"a header of version {version}; save it anew, no objects or fields")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which can run code and are never read")
    claimed = math.prod(shape) * max(dtype.itemsize, 1)  # texts of no letters count too
    if claimed > size - file.tell():
        raise ValueError(
            f"the header says {dtype} {list(shape)}, {claimed:,} bytes, of {size - file.tell():,}"
        )


@contextmanager
def _reasons() -> Iterator[None]:
    """Any of BROKEN as a ValueError of one line."""
    try:
        yield
    except BROKEN as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
