"""Reading files that anyone may have made: no more memory than a limit, and no surprise but an
error. What reads arrays so is npz.py."""

import json
import os
import stat
from typing import Any

from etils import epath

from ood_jax import place

# Nothing that is meant comes near these; they keep a file that says to be larger, such as one full
# of holes, from being read at all.
IMAGE_BYTES = 1024**3  # more than the most pixels that `decode` takes need, uncompressed
TEXT_BYTES = 1024**3  # of JSON, a log or a list: ImageNet-21k's list has 0.6 GB
WEIGHT_BYTES = 64 * 1024**3
TABLE_ROWS, TABLE_BYTES = 100_000_000, 8 * 1024**3  # of a Parquet file, unfolded
DEPTH = 100  # levels of JSON; ours have 10. What goes down them calls itself at each
DIGITS = 20  # of a whole number in JSON; 64 bits have 20

# What takes apart a structure that is not as expected raises one of these.
MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
# Reading a whole file raises one of these, pyarrow's among them.
UNREADABLE = (OSError, NotImplementedError, MemoryError, *MISSHAPEN)


def read_bytes(path: epath.PathLike, limit: int) -> bytes:
    """All of a regular file or of an object on storage.

    Raises:
      OSError: it cannot be read.
      ValueError: it has more than `limit` bytes, or is a pipe or device, which might never end.
    """
    if place.is_remote(path):
        data = place.read(path, limit + 1)
        if len(data) > limit:
            raise ValueError(f"{path} has more bytes than {limit:,}, which are read at most")
        return data
    with open(path, "rb", opener=_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no regular file: give a file")
        if found.st_size > limit:
            raise ValueError(f"{path} has {found.st_size:,} bytes; {limit:,} are read at most")
        try:
            return file.read(found.st_size)
        except MemoryError:
            raise ValueError(
                f"{path} has {found.st_size:,} bytes, more than fit into this machine's memory"
            ) from None


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe without waiting for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: epath.PathLike) -> Any:
    """The value in a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: `read_bytes` or `parse_json` refuses it.
    """
    return parse_json(read_bytes(path, TEXT_BYTES).decode("utf-8"))


def check_table(path: epath.PathLike) -> None:
    """Refuses a Parquet file on disk that says to unfold to more than TABLE_ROWS or TABLE_BYTES.

    Raises:
      ValueError: that, or none of Parquet.
      OSError: it cannot be read.
    """
    from pyarrow import parquet

    found = parquet.read_metadata(path)
    claimed = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
    if found.num_rows > TABLE_ROWS or claimed > TABLE_BYTES:
        raise ValueError(
            f"{path} says to hold {found.num_rows:,} rows, {claimed:,} bytes: too many"
        )


def parse_json(text: str) -> Any:
    """`json.loads` without values that are too deep or long for what comes after.

    Raises:
      ValueError: no JSON (its JSONDecodeError says where), or such a value.
    """
    try:
        found = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_DEEP) from None
    level = [found]
    for _ in range(DEPTH + 1):
        level = [
            value
            for node in level
            if isinstance(node, dict | list)
            for value in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return found
    raise ValueError(_DEEP)


_DEEP = f"nested more than {DEPTH} levels deep"


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits; {DIGITS} are read at most")
    return int(text)
