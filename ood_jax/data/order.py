"""Which image comes when: a pure function of (set size, batch, seed, step), for any process count.

Images are shuffled anew every epoch, each epoch shows every image once, and batches run across the
border between epochs, so that none is dropped. Balanced batches know no epochs: each slot draws a
class, then an image of it. Nothing needs saving to resume at a step.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

TRAIN, AUXILIARY, BALANCED, NEAR, FAR = range(5)  # streams of one seed, each with its own order
SHOWN = 5  # missing classes that an error lists


@functools.lru_cache(maxsize=8)  # two epochs of each stream
def epoch_order(n: int, seed: int, epoch: int, stream: int = TRAIN) -> np.ndarray:
    """The order of one epoch: a permutation of 0 .. n - 1, int64 [n], not to be written to."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, epoch))))
    order = rng.permutation(n)
    order.setflags(write=False)
    return order


def global_indices(n: int, batch: int, seed: int, step: int, stream: int = TRAIN) -> np.ndarray:
    """The images of the global batch at `step`, int64 [batch], values 0 .. n - 1."""
    epochs, offsets = np.divmod(np.arange(step * batch, (step + 1) * batch), n)
    out = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = epoch_order(n, seed, int(epoch), stream)[offsets[here]]
    return out


class Order(NamedTuple):
    """One process's part of a stream over n images: rows [start, start + length) of each batch."""

    n: int
    batch: int
    seed: int
    stream: int
    start: int
    length: int

    def rows(self, step: int) -> np.ndarray:
        """The images of the process's rows at `step`, int64 [length]."""
        whole = global_indices(self.n, self.batch, self.seed, step, self.stream)
        return whole[self.start : self.start + self.length]

    def item(self, k: int) -> int:
        """The image of the process's k-th row, counted through all steps from step 0."""
        step, row = divmod(k, self.length)
        epoch, offset = divmod(step * self.batch + self.start + row, self.n)
        return int(epoch_order(self.n, self.seed, epoch, self.stream)[offset])

    def instead(self, i: int) -> Iterator[int]:
        """Image i, then what stands in for it: the next ones, round the end."""
        return (j % self.n for j in range(i, i + self.n))

    def readable(self, good: np.ndarray) -> np.ndarray:
        """The first of `instead` that is good (bool [n], not all False), of each: int64 [n]."""
        return _next_good(np.arange(self.n), good)


class Balanced(NamedTuple):
    """One process's part of a class-balanced stream: rows [start, start + length) of each batch.

    For each slot of the global batch a class is drawn i.i.d. and uniformly, then an image of that
    class, uniformly (Winkens et al. 2020, appendix C). members: int64 [n], the images class by
    class, ascending in each. borders: int64 [C + 1], where in them the classes begin and end.
    """

    members: np.ndarray
    borders: np.ndarray
    batch: int
    seed: int
    start: int
    length: int

    def rows(self, step: int) -> np.ndarray:
        """The images of the process's rows at `step`, int64 [length]."""
        return self._images(step, slice(self.start, self.start + self.length))

    def item(self, k: int) -> int:
        """The image of the process's k-th row, counted through all steps from step 0."""
        step, row = divmod(k, self.length)
        return int(self._images(step, slice(self.start + row, self.start + row + 1))[0])

    def instead(self, i: int) -> Iterator[int]:
        """Image i, then what stands in for it: the next ones of its class, then of any."""
        yield i
        place = int(np.flatnonzero(self.members == i)[0])
        c = np.searchsorted(self.borders, place, side="right")
        low, high = self.borders[c - 1], self.borders[c]
        yield from self.members[place + 1 : high].tolist()
        yield from self.members[low:place].tolist()
        n = len(self.members)
        yield from (j % n for j in range(i + 1, i + n))

    def readable(self, good: np.ndarray) -> np.ndarray:
        """The first of `instead` that is good (bool [n], not all False), of each: int64 [n]."""
        out = _next_good(np.arange(len(self.members)), good)
        for members in np.split(self.members, self.borders[1:-1]):
            if good[members].any():
                out[members] = _next_good(members, good)
        return out

    def _images(self, step: int, rows: slice) -> np.ndarray:
        classes, places = _draws(len(self.borders) - 1, self.batch, self.seed, step)
        low, high = self.borders[classes[rows]], self.borders[classes[rows] + 1]
        return self.members[low + (places[rows] * (high - low)).astype(np.int64)]


def balanced_order(
    labels: np.ndarray | None, batch: int, seed: int, start: int, length: int
) -> Balanced:
    """The class-balanced order over images with `labels`, int [n]: of the classes that are there.

    Raises:
      ValueError: an image without a label (-1, or None for all of them).
    """
    known = _labelled(labels)
    members = np.argsort(known, kind="stable")
    sizes = np.unique(known, return_counts=True)[1]
    return Balanced(members, np.append(0, np.cumsum(sizes)), batch, seed, start, length)


def check_balanced(labels: np.ndarray | None, classes: int) -> None:
    """Refuses labels, int [n], -1 = none, from which batches over 0 .. classes - 1 cannot be drawn.

    classes: 0 = those that there are.

    Raises:
      ValueError: a class without an image, or an image without a label or beyond the classes.
    """
    known = _labelled(labels)
    if not classes:
        return
    if known.max() >= classes:
        raise ValueError(
            f"data.balanced: data.train has labels up to {known.max()}, and there are {classes}"
            f" classes; use {known.max() + 1} or more"
        )
    missing = np.setdiff1d(np.arange(classes), known)
    if len(missing):
        listed = ", ".join(map(str, missing[:SHOWN]))
        listed += f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"data.balanced: data.train has no image of class {listed} (of {classes}); use fewer"
            " classes, or a set that has all of them"
        )


def _labelled(labels: np.ndarray | None) -> np.ndarray:
    if labels is None or labels.min() < 0:
        some = "no" if labels is None else f"{np.sum(labels < 0)} of {len(labels)} images without"
        raise ValueError(
            f"data.balanced: data.train has {some} labels; set it to False, or use a labelled set"
        )
    return labels


@functools.lru_cache(maxsize=4)
def _draws(classes: int, batch: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """For each slot of a batch a class, int64 [batch], and a place within it, in [0, 1)."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, BALANCED, step))))
    return rng.integers(classes, size=batch), rng.random(batch)


def _next_good(members: np.ndarray, good: np.ndarray) -> np.ndarray:
    """The first good one at or after each of `members` (ascending) among them, round the end."""
    readable = members[good[members]]
    return readable[np.searchsorted(readable, members) % len(readable)]


def local_rows(batch: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process feeds: the blocks follow the processes' order,
    so the processes' rows one after another are the global batch.

    Raises:
      ValueError: the batch does not divide over the processes.
    """
    if batch < 1 or batch % process_count:
        low = max(batch // process_count, 1) * process_count
        raise ValueError(
            f"batch {batch} does not divide over {process_count} processes:"
            f" use {low} or {low + process_count}"
        )
    rows = batch // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
