"""An exact percentile of more numbers than one wants to sort."""

from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 24  # numbers looked at at once


def percentile(rows: np.ndarray, percent: float) -> float:
    """The percentile of all numbers of float32 [M, D], as `np.percentile` interpolates it.

    Two passes of counting, by the upper and by the lower half of each number's bits: no second
    copy of the rows is made.
    """
    position = percent / 100 * (rows.size - 1)
    below = int(position)
    upper = np.cumsum(_count(rows))
    low = _at(rows, upper, below)
    high = _at(rows, upper, min(below + 1, rows.size - 1))
    return low + (high - low) * (position - below)


def _at(rows: np.ndarray, upper: np.ndarray, place: int) -> float:
    """The number at `place` from 0, ascending; upper: cumulative counts of upper halves."""
    half = int(np.searchsorted(upper, place, side="right"))
    lower = np.cumsum(_count(rows, half))
    before = int(upper[half - 1]) if half else 0
    key = half << 16 | int(np.searchsorted(lower, place - before, side="right"))
    bits = np.uint32(key ^ 0x80000000 if key & 0x80000000 else key ^ 0xFFFFFFFF)
    return float(bits.view(np.float32))


def _count(rows: np.ndarray, half: int | None = None) -> np.ndarray:
    """How many numbers have each upper half, int64 [65536]; of the given one: each lower half."""
    total = np.zeros(1 << 16, np.int64)
    for keys in _keys(rows):
        chosen = keys >> 16 if half is None else keys[keys >> 16 == half] & 0xFFFF
        total += np.bincount(chosen, minlength=1 << 16)
    return total


def _keys(rows: np.ndarray) -> Iterator[np.ndarray]:
    """uint32 numbers that order as the floats do, block by block."""
    count = max(BLOCK // rows.shape[1], 1)
    for start in range(0, len(rows), count):
        bits = np.ascontiguousarray(rows[start : start + count]).reshape(-1).view(np.uint32)
        yield np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
