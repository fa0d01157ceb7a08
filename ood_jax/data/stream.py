"""Sets that do not fit in memory: images are decoded as they come, in threads or in processes."""

import atexit
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from ood_jax.data.decode import fit
from ood_jax.data.order import Balanced, Order
from ood_jax.data.source import CorruptImage, Source

THREADS = 8  # Pillow releases the interpreter lock while it decodes and resizes
AHEAD = 4  # batches decoded before they are asked for
ENDLESS = 2**62  # items; grain wants a length


class Rows(NamedTuple):
    """image: uint8 [b, S, S, 3]; which: int32 [b], their indices; label: int32 [b], -1 = none;
    skipped: how many of the rows stand in for a corrupt image."""

    image: np.ndarray
    which: np.ndarray
    label: np.ndarray
    skipped: int


class Item(NamedTuple):
    """One row of Rows; skipped is 0 or 1."""

    image: np.ndarray
    which: int
    label: int
    skipped: int


def streamed(
    source: Source, size: int, order: Order | Balanced, step: int, workers: int
) -> Iterator[Rows]:
    """The process's rows from `step` on, decoded in `workers` processes (0 = in threads).

    Raises:
      ValueError: workers without grain installed; while iterating, no image can be read.
    """
    if workers:
        _check_grain(workers)
        batches = _in_processes(source, size, order, step, workers)
        # Left open until the interpreter goes, each of grain's buffers complains once.
        atexit.register(batches.close)
        return batches
    read = _in_threads(
        lambda i: read_good(source, size, i, order), (order.rows(s).tolist() for s in count(step))
    )
    return map(_stacked, read)


def evaluated(
    source: Source, size: int, batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each int64 [b]: uint8 [b, S, S, 3] and bool [b], False and zeros where corrupt.

    Raises:
      ValueError: while iterating, at the end: none of the images could be read.
    """
    blank = np.zeros((size, size, 3), np.uint8)
    any_good = False
    for images in _in_threads(
        lambda i: read_or_none(source, size, i), (indices.tolist() for indices in batches)
    ):
        good = np.array([image is not None for image in images])
        any_good = any_good or bool(good.any())
        yield np.stack([blank if image is None else image for image in images]), good
    if not any_good:
        raise all_corrupt(source)


def read_good(source: Source, size: int, i: int, order: Order | Balanced) -> Item:
    """Image i at size x size, or the first that `order` has instead and that can be read.

    Raises:
      ValueError: none can.
    """
    for j in order.instead(i):
        image = read_or_none(source, size, j)
        if image is not None:
            label = source.labels_of(np.array([j]))
            return Item(image, j, -1 if label is None else int(label[0]), int(j != i))
    raise all_corrupt(source)


def read_or_none(source: Source, size: int, i: int) -> np.ndarray | None:
    """Image i as uint8 [size, size, 3]; None = it is corrupt."""
    try:
        return fit(source.image(i), size)
    except CorruptImage:
        return None


def all_corrupt(source: Source) -> ValueError:
    """What to raise where no image is left."""
    return ValueError(
        f"none of the {len(source)} images of {source.spec!r} can be read: check the files"
    )


def _in_threads(read: Any, batches: Iterable[list[int]]) -> Iterator[list[Any]]:
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[list[Future]] = deque()
    try:
        for indices in batches:
            # Once each: a last batch is filled up with its last image, which may be a large one.
            futures = {i: pool.submit(read, i) for i in dict.fromkeys(indices)}
            waiting.append([futures[i] for i in indices])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _check_grain(workers: int) -> None:
    from importlib.util import find_spec

    if find_spec("grain") is None:
        raise ValueError(f"data.workers = {workers} needs grain: install it or use 0")


def _in_processes(
    source: Source, size: int, order: Order | Balanced, step: int, workers: int
) -> Generator[Rows]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain's processes read absl's flags
        flags.FLAGS(["ood_jax"])
    items = grain.MapDataset.range(step * order.length, ENDLESS)
    dataset = (
        items.map(lambda k: read_good(source, size, order.item(int(k)), order))
        .batch(order.length, batch_fn=_stacked)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        )
    )
    batches = iter(dataset)
    try:
        for rows in batches:  # they lie in memory shared with the workers: copied to give it back
            arrays = np.array(rows.image), np.array(rows.which), np.array(rows.label)
            yield Rows(*arrays, int(rows.skipped))
    except RuntimeError as error:  # what grain raises where one of its processes has died
        raise OSError(
            f"a data worker died ({error}); was memory short? Lower data.workers"
        ) from error
    finally:
        batches.close()


def _stacked(items: Any) -> Rows:
    images, which, label, skipped = zip(*items, strict=True)
    return Rows(
        np.stack(images), np.array(which, np.int32), np.array(label, np.int32), sum(skipped)
    )
