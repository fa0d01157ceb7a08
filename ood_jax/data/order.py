"""Which image comes when: a pure function of (set size, batch, seed, step), for any process count.

Images are shuffled anew every epoch, each epoch shows every image once, and batches run across the
border between epochs, so that none is dropped. Nothing needs saving to resume at a step.
"""

import functools
from typing import NamedTuple

import numpy as np

TRAIN, AUXILIARY = 0, 1  # streams of one seed, each with its own order


@functools.lru_cache(maxsize=4)
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
