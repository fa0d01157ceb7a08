"""Unions: several sources read as one, their labels numbered on from one to the next."""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from ood_jax.data.source import Part, Source

SHOWN = 60  # letters of a long text in a message
DEEPEST = 50  # parentheses within parentheses; each costs a call within a call
CLASSES = 1_000_000  # of a set whose labels have no names; each gets one in a union
TOGETHER = 4 * 1024**3  # bytes; parts in memory up to this size become one array

# What begins a part: KIND:, behind names and parentheses. So a path may hold " + ".
_BEGINS = r"(?:\(|[\w.-]+=)*\w+:"


def split(spec: str) -> list[str]:
    """The parts of a union `A + B + C` as text; one where `spec` is no union.

    A plus with spaces round it parts them, outside parentheses.

    Raises:
      ValueError: more than DEEPEST parentheses within one another.
    """
    steps = ((letter == "(") - (letter == ")") for letter in spec)
    if max(itertools.accumulate(steps), default=0) > DEEPEST:
        raise ValueError(
            f"{spec[:SHOWN]!r}...: parentheses more than {DEEPEST} deep; leave some out"
        )
    out, start, seen, depth = [], 0, 0, 0
    for plus in re.finditer(rf"\s\+\s+(?={_BEGINS})", spec):
        depth += spec.count("(", seen, plus.start()) - spec.count(")", seen, plus.start())
        seen = plus.start()
        if depth == 0:
            out.append(spec[start : plus.start()].strip())
            start = plus.end()
    return [*out, spec[start:].strip()]


def named(spec: str) -> list[tuple[str, str]]:
    """(name, source) of each part: `NAME=SOURCE`, or a source that is its own name.

    Raises:
      ValueError: two parts of one name.
    """
    out: dict[str, str] = {}
    for part in split(spec):
        found = re.fullmatch(rf"([\w.-]+)=({_BEGINS}.*)", part, re.DOTALL)
        name, source = (found[1], found[2]) if found else (part, part)
        if name in out:
            raise ValueError(
                f"{spec!r}: two parts are called {name!r}; name them apart, FIRST=... + SECOND=..."
            )
        out[name] = source
    return list(out.items())


def uncut(spec: str) -> tuple[str, str]:
    """What is cut and the filters that cut it: `(A + B)[:9]` -> "(A + B)", "[:9]"; not for unions,
    whose filters belong to their last part."""
    at = len(spec)
    while spec.endswith("]", 0, at):  # a regex would try every start with every end
        begin = spec.rfind("[", 0, at)
        if begin < 0 or "]" in spec[begin : at - 1]:
            break
        at = begin
    return spec[:at], spec[at:]


def inside(base: str) -> str | None:
    """What stands in the parentheses round all of `base`; None = there are none."""
    return base[1:-1].strip() if base.startswith("(") and base.endswith(")") else None


def singles(spec: str) -> list[str]:
    """The sources that `spec` reads, one by one, without names, filters and parentheses.

    Raises:
      ValueError: two parts of one name.
    """
    parts = named(spec.strip())
    if len(parts) > 1:
        return [one for _, part in parts for one in singles(part)]
    base, _ = uncut(parts[0][1])
    group = inside(base)
    return [base] if group is None else singles(group)


def union(opened: Sequence[tuple[str, Source]], spec: str) -> Source:
    """Sources, each under a name, one after another as one source called `spec`.

    Class c of a part becomes class c + `Part.first`, where `first` counts the classes of the parts
    before: the names that the source knows, else its largest label before any filter + 1. A part
    without labels is one class. Classes are called NAME/CLASS, or NAME where there is but one.

    Raises:
      ValueError: a label of CLASSES or more in a part without names of classes.
    """
    sources = [source for _, source in opened]
    parts: list[Part] = []
    first = row = 0
    for name, source in opened:
        classes = _class_names(name, source, spec)
        parts.append(Part(name, source.spec, classes, first, row, len(source)))
        first, row = first + len(classes), row + len(source)
    starts = np.array([part.rows for part in parts])

    def place(i: int) -> tuple[int, int]:
        """The part that image i lies in, and its index there."""
        k = int(np.searchsorted(starts, i, side="right")) - 1
        return k, int(i - starts[k])

    def read(i: int) -> np.ndarray:
        k, own = place(i)
        return sources[k].image(own)

    def describe(i: int) -> str:
        k, own = place(i)
        return f"{parts[k].name}/{sources[k].name(own)}"

    return Source(
        spec,
        row,
        read,
        describe=describe,
        classes=tuple(name for part in parts for name in part.classes),
        read_labels=_labels(sources, parts),
        array=_together(sources),
        parts=tuple(parts),
        joined=tuple(sources),
    )


def _class_names(name: str, source: Source, spec: str) -> tuple[str, ...]:
    if source.read_labels is None:
        return (name,)
    if source.classes:
        return tuple(f"{name}/{one}" for one in source.classes)
    largest = int(source.read_labels(np.arange(source.count)).max())
    if largest >= CLASSES:
        raise ValueError(
            f"{spec!r}: the label {largest} in {name}; in a union use labels below {CLASSES:,}"
        )
    return tuple(f"{name}/{label}" for label in range(largest + 1)) or (name,)


def _labels(sources: Sequence[Source], parts: Sequence[Part]) -> Callable[[np.ndarray], np.ndarray]:
    """int64 [M], images of the union -> int32 [M], their labels there."""
    starts = np.array([part.rows for part in parts])

    def of_part(k: int, own: np.ndarray) -> np.ndarray:
        if parts[k].classes == (parts[k].name,):  # the whole part is one class
            return np.full(len(own), parts[k].first, np.int32)
        found = sources[k].labels_of(own)
        assert found is not None
        return np.where(found < 0, -1, found + parts[k].first)

    def read_labels(rows: np.ndarray) -> np.ndarray:
        out = np.empty(len(rows), np.int32)
        owner = np.searchsorted(starts, rows, side="right") - 1
        for k in np.unique(owner):
            out[owner == k] = of_part(int(k), rows[owner == k] - starts[k])
        return out

    return read_labels


def _together(sources: Sequence[Source]) -> np.ndarray | None:
    """All images as one array; None = not all lie in memory, sizes differ, or they are too many."""
    arrays = [s.array for s in sources if s.array is not None]
    shapes = {array.shape[1:] for array in arrays}
    if len(arrays) < len(sources) or len(shapes) > 1:
        return None
    if sum(map(len, sources)) * int(np.prod(shapes.pop())) > TOGETHER:
        return None
    whole = zip(arrays, sources, strict=True)
    return np.concatenate([a if s.rows is None else a[s.rows] for a, s in whole])
