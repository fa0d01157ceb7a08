"""A source: random access to the images of one named set, and how a set is cut down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


class CorruptImage(ValueError):
    """One image cannot be decoded; the message names it and says why."""


@dataclass(frozen=True)
class Part:
    """One source within a union.

    name: unique in the union. spec: the text it was opened by. classes: names in the union of its
    labels `first`, `first` + 1, ... rows, count: its images are rows, ..., rows + count - 1.
    """

    name: str
    spec: str
    classes: tuple[str, ...]
    first: int
    rows: int
    count: int


@dataclass(frozen=True)
class Source:
    """N images in a fixed order, decoded one at a time.

    spec: the text it was opened by. count: N before `rows` picks from it. read: index before
    `rows` -> uint8 [H, W, 3], or raises CorruptImage. describe: the same index -> path or number
    for result tables. classes: names of the labels, () = unknown. read_labels: int64 [M] of the
    same indices -> int32 [M], -1 = none; None = the set has no labels. array: uint8
    [count, H, W, 3], where all images lie in memory or in a memory-mapped file. rows: int64 [N],
    which images, in order; None = all. parts: of a union, as far as `rows` leaves them; () = none.
    joined: the sources of a union, each whole.
    """

    spec: str
    count: int
    read: Callable[[int], np.ndarray]
    describe: Callable[[int], str] = str
    classes: tuple[str, ...] = ()
    read_labels: Callable[[np.ndarray], np.ndarray] | None = None
    array: np.ndarray | None = None
    rows: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    joined: tuple["Source", ...] = ()

    def __len__(self) -> int:
        return self.count if self.rows is None else len(self.rows)

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], -1 = none; None = the set has no labels. TFDS sets are read through for it."""
        return self.labels_of(np.arange(len(self)))

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        """The labels of images int64 [M]: int32 [M], -1 = none; None = the set has no labels."""
        if self.read_labels is None:
            return None
        return self.read_labels(indices if self.rows is None else self.rows[indices])

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3].

        Raises:
          CorruptImage: it cannot be decoded.
          OSError: its file cannot be read at all, which is no fault of the image.
        """
        return self.read(self._row(i))

    def name(self, i: int) -> str:
        """The path of image i, or its number in the uncut set where it has no path."""
        return self.describe(self._row(i))

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Rows of `array`, uint8 [len(indices), H, W, 3]; only where `array` is set."""
        assert self.array is not None
        return self.array[indices if self.rows is None else self.rows[indices]]

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {self.spec}: it has {len(self)}")
        return int(i if self.rows is None else self.rows[i])


def from_array(
    spec: str,
    array: np.ndarray,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
) -> Source:
    """A source over images uint8 [N, H, W, 3] that lie in memory (or are memory-mapped)."""
    return Source(
        spec,
        len(array),
        lambda i: np.asarray(array[i]),
        classes=classes,
        read_labels=None if labels is None else labels.astype(np.int32).__getitem__,
        array=array,
    )


def take(source: Source, rows: np.ndarray, spec: str) -> Source:
    """The images `rows` (int64 [M], ascending) of a source; labels keep their numbers.

    Raises:
      ValueError: no image is left.
    """
    if len(rows) == 0:
        raise ValueError(
            f"{spec!r} leaves none of the {len(source)} images of {source.spec!r}:"
            " widen the slice or the classes"
        )
    picked = rows if source.rows is None else source.rows[rows]
    parts = tuple(_cut(part, rows) for part in source.parts)
    return replace(source, spec=spec, rows=picked, parts=parts)


def renumbered(source: Source, numbers: Sequence[int]) -> Source:
    """A labelled source whose classes `numbers` are 0, 1, ... in this order; other labels are -1.

    Of a union the parts are forgotten: their classes are no longer in a row.

    Raises:
      ValueError: a class twice.
    """
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{source.spec!r} renumbers a class twice: name each once")
    before = source.read_labels
    assert before is not None  # the filter that asks for it has read them
    order = np.argsort(numbers)
    ascending = np.asarray(numbers)[order]

    def read_labels(rows: np.ndarray) -> np.ndarray:
        old = before(rows)
        places = np.minimum(np.searchsorted(ascending, old), len(ascending) - 1)
        return np.where(ascending[places] == old, order[places], -1).astype(np.int32)

    names = tuple(source.classes[number] for number in numbers) if source.classes else ()
    return replace(source, classes=names, read_labels=read_labels, parts=())


def _cut(part: Part, rows: np.ndarray) -> Part:
    start, stop = np.searchsorted(rows, (part.rows, part.rows + part.count))
    return replace(part, rows=int(start), count=int(stop - start))


def check_classes(train: Source, classes: int, method: str) -> None:
    """Refuses a train set that `method` cannot tell `classes` classes apart with.

    Raises:
      ValueError: images without labels, labels that are too high, one class alone.
    """
    labels = train.labels
    known = 0 if labels is None else int((labels >= 0).sum())
    if labels is None or known < len(labels):
        raise ValueError(
            f"data.train: {len(train) - known} of {len(train)} images of {train.spec!r} have no"
            f" label, and {method} needs one of each; use a labelled set"
        )
    if labels.max() >= classes:
        raise ValueError(
            f"data.train has labels up to {labels.max()}, head.outputs = {classes}: use"
            f" {labels.max() + 1} outputs or more ([classes=...] leaves the numbers as they are,"
            " [renumber=...] counts from 0)"
        )
    if labels.min() == labels.max():
        raise ValueError(
            f"data.train: all {len(train)} images of {train.spec!r} are of class {labels.max()},"
            f" and {method} tells classes apart: use two or more, or a method without labels"
        )
