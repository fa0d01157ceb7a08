"""Batches of vectors: beside the images of `pipeline`, or in their place."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from ood_jax.data.order import FAR, NEAR, Order, local_rows
from ood_jax.data.pipeline import train_order
from ood_jax.data.source import Source
from ood_jax.types import Vectors

OF_IMAGES = {"embedding": "embeddings", "teacher_logits": "teacher_logits"}
OUTLIERS = {"near": NEAR, "far": FAR}


def with_vectors(
    batches: Iterator[dict[str, Any]],
    vectors: Vectors,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """`batches`, which begin at `start_step`, with what `vectors` has for them.

    Each gets "embedding" float32 [b, D] and "teacher_logits" float32 [b, K], of the images that
    its "index" int32 [b] names, and "near" float32 [b, D] and "far" float32 [b, E]: outliers, of
    either kind in an order of its own, as pipeline.train_batches has it of images.

    Raises:
      ValueError: the batch does not divide over the processes.
    """
    rows = local_rows(batch, process_index, process_count)
    part = rows.start, rows.stop - rows.start
    fields = vectors._asdict()
    beside = {name: fields[field] for name, field in OF_IMAGES.items() if fields[field] is not None}
    apart = {
        name: (fields[name], Order(len(fields[name]), batch, seed, stream, *part))
        for name, stream in OUTLIERS.items()
        if fields[name] is not None
    }
    for step, host in zip(count(start_step), batches, strict=False):
        own = {name: array[host["index"]] for name, array in beside.items()}
        drawn = {name: array[order.rows(step)] for name, (array, order) in apart.items()}
        yield host | own | drawn


def numbered_batches(
    train: Source,
    known: np.ndarray,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    balanced: bool = False,
) -> Iterator[dict[str, Any]]:
    """The batches of pipeline.train_batches without images, of which none is read.

    Each has "index" int32 [b], "label" int32 [b] (-1 = none) and "skipped" int. known: bool [N],
    False = corrupt, replaced as there.

    Raises:
      ValueError: the batch does not divide over the processes, or `balanced` with an image that has
        no label.
    """
    rows = local_rows(batch, process_index, process_count)
    order = train_order(train, batch, seed, balanced, rows.start, rows.stop - rows.start)
    instead = order.readable(known)
    labels = train.labels
    labels = np.full(len(train), -1, np.int32) if labels is None else labels
    for step in count(start_step):
        asked = order.rows(step)
        index = instead[asked]
        skipped = int(np.sum(index != asked))
        yield {"index": index.astype(np.int32), "label": labels[index], "skipped": skipped}
