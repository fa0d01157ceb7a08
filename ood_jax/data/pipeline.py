"""Host batches of uint8 images: shuffled for training, in order for evaluation.

Sets that fit in memory are decoded once and gathered by index; larger ones are decoded as they
come, in threads or in grain's worker processes. Which image comes when is in order.py.
"""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ood_jax.data.order import AUXILIARY, TRAIN, Balanced, Order, balanced_order, local_rows
from ood_jax.data.source import Source
from ood_jax.data.stream import THREADS, Rows, all_corrupt, evaluated, read_or_none, streamed

MEMORY = 4 * 1024**3  # bytes


class Images(NamedTuple):
    """A decoded set. images: uint8 [N, S, S, 3], zeros where corrupt; good: bool [N]."""

    images: np.ndarray
    good: np.ndarray


def fits(source: Source, size: int, memory: int = MEMORY) -> bool:
    """Is the set, decoded at size x size, at most `memory` bytes (or memory-mapped as it is)?"""
    return _ready(source, size) or len(source) * size * size * 3 <= memory


def decoded(source: Source, size: int) -> Images:
    """The whole set at size x size, see `decode.fit`; a bar on a terminal when it takes long.

    Raises:
      ValueError: no image of the set can be read.
    """
    if _ready(source, size):
        assert source.array is not None
        whole = source.array if source.rows is None else source.images(np.arange(len(source)))
        return Images(whole, np.ones(len(source), bool))
    images = np.zeros((len(source), size, size, 3), np.uint8)
    good = np.zeros(len(source), bool)

    def put(i: int) -> None:
        image = read_or_none(source, size, i)
        if image is not None:
            images[i], good[i] = image, True

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in _progress(pool.map(put, range(len(source))), len(source), source.spec):
            pass
    if not good.any():
        raise all_corrupt(source)
    return Images(images, good)


def train_batches(
    train: Source,
    auxiliary: Source | None = None,
    *,
    batch: int,
    size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    memory: int = MEMORY,
    balanced: bool = False,
) -> Iterator[dict[str, Any]]:
    """Endless batches from `start_step` on: this process's b = batch / process_count rows.

    Each has "image" uint8 [b, size, size, 3], "index" int32 [b], "label" int32 [b] (-1 = none),
    with an auxiliary set "auxiliary" uint8 [b, size, size, 3] and "auxiliary_index" int32 [b], and
    "skipped" int: corrupt images among the rows. Each of those is replaced by the next image of
    its set that can be read, and the index is that image's. Process p has the rows [p b, (p + 1) b)
    of the global batch, which depends on (seed, step) alone. `memory` bounds each set by itself.
    balanced: for each slot a class of `train` is drawn, then an image of it, see order.Balanced; a
    corrupt image is replaced by the next of its class where one can be read.

    Raises:
      ValueError: the batch does not divide over the processes, no image can be read, or `balanced`
        with an image that has no label.
    """
    rows = local_rows(batch, process_index, process_count)
    part = rows.start, rows.stop - rows.start
    pairs = [(train, train_order(train, batch, seed, balanced, *part))]
    if auxiliary is not None:
        pairs.append((auxiliary, Order(len(auxiliary), batch, seed, AUXILIARY, *part)))
    feeds = []
    for source, order in pairs:
        if fits(source, size, memory):
            feeds.append(_gathered(source, decoded(source, size), order, start_step))
        else:
            feeds.append(streamed(source, size, order, start_step, workers))
    return _joined(*feeds)


def train_order(
    train: Source, batch: int, seed: int, balanced: bool, start: int, length: int
) -> Order | Balanced:
    """Which images of `train` come when, see `train_batches`: rows [start, start + length)."""
    if balanced:
        return balanced_order(train.labels, batch, seed, start, length)
    return Order(len(train), batch, seed, TRAIN, start, length)


def eval_batches(
    source: Source,
    *,
    batch: int,
    size: int,
    process_index: int = 0,
    process_count: int = 1,
    memory: int = MEMORY,
) -> Iterator[dict[str, np.ndarray]]:
    """Every image once, in order: this process's b = batch / process_count rows of each batch.

    Each has "image" uint8 [b, size, size, 3], "index" int32 [b] and "valid" bool [b]: False where
    the last batch is filled up with its last image, and for corrupt images (zeros), which count
    as skipped and are replaced by nothing. Process p has the rows [p b, (p + 1) b) of each batch.

    Raises:
      ValueError: the batch does not divide over the processes, or no image can be read.
    """
    rows = local_rows(batch, process_index, process_count)
    whole = decoded(source, size) if fits(source, size, memory) else None
    return _in_order(source, size, batch, rows, whole)


def _in_order(
    source: Source, size: int, batch: int, rows: slice, whole: Images | None
) -> Iterator[dict[str, np.ndarray]]:
    places = [np.arange(start, start + batch)[rows] for start in range(0, len(source), batch)]
    asked = [place.clip(max=len(source) - 1) for place in places]
    read = (
        ((whole.images[i], whole.good[i]) for i in asked)
        if whole is not None
        else evaluated(source, size, asked)
    )
    for place, index, (images, good) in zip(places, asked, read, strict=True):
        valid = good & (place < len(source))
        yield {"image": images, "index": index.astype(np.int32), "valid": valid}


def _joined(main: Iterator[Rows], extra: Iterator[Rows] | None = None) -> Iterator[dict[str, Any]]:
    for rows in main:
        out = {"image": rows.image, "index": rows.which, "label": rows.label}
        skipped = rows.skipped
        if extra is not None:
            more = next(extra)
            out |= {"auxiliary": more.image, "auxiliary_index": more.which}
            skipped += more.skipped
        yield out | {"skipped": skipped}


def _gathered(source: Source, whole: Images, order: Order | Balanced, step: int) -> Iterator[Rows]:
    instead = order.readable(whole.good)
    labels = source.labels
    labels = np.full(len(source), -1, np.int32) if labels is None else labels
    while True:
        asked = order.rows(step)
        index = instead[asked]
        skipped = int(np.sum(index != asked))
        yield Rows(whole.images[index], index.astype(np.int32), labels[index], skipped)
        step += 1


def _ready(source: Source, size: int) -> bool:
    return source.array is not None and source.array.shape[1:] == (size, size, 3)


def _progress(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    if not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=f"decoding {text}", unit=" images", delay=2.0)
