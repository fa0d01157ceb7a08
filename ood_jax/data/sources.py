"""From the text of a source to the images: KIND:WHERE, then any number of [filters].

`A + B` is the union of sources, each perhaps named, NAME=A + NAME=B, and cut as a whole by filters
behind parentheses, (A + B)[:1000].
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from ood_jax.data.source import CorruptImage, Part, Source, renumbered, take
from ood_jax.data.union import inside, named, split, uncut, union
from ood_jax.place import under

__all__ = [
    "KINDS",
    "CorruptImage",
    "Part",
    "Source",
    "class_numbers",
    "cut",
    "filtered",
    "open_source",
]

KINDS = {
    "tfds": "tfds:NAME[/config][:split]",
    "folder": "folder:PATH",
    "list": "list:FILE[@FOLDER]",
    "npz": "npz:FILE",
    "builtin": "builtin:glyphs/SPLIT",
    "noise": "noise:gaussian",
}
UNION = "; a union is A + B or NAME=A + NAME=B, with spaces round the plus, and (A + B)[:9] cuts it"
FILTERS = (
    "[:1000], [10:20], [-1000:], [classes=0-4,7], [classes=cat,dog], [renumber=0-4,7],"
    " [sample=100] or [sample=100@SEED]"
)
SHOWN = 20  # classes that an error lists
MOST_FILTERS = 100  # behind one source


def open_source(spec: str, *, root: str = "") -> Source:
    """Opens a source; KINDS has the forms, FILTERS what may follow, applied from left to right.

    Relative paths, the paths in lists and prepared TFDS sets lie in `root`, if given. Root and PATH
    may be gs:// or s3://: arrays are copied to a temporary file once, images are read as they are
    needed. Filters by
    class leave the labels' numbers as they are; how a union numbers them is in union.py. Samples
    are drawn without replacement, in ascending order; of one seed and one set, the smaller ones lie
    within the larger ones.

    Raises:
      ValueError: in one line what is wrong: the kind, the path, the contents or a filter.
      OSError: object storage does not answer.
    """
    spec = spec.strip()
    if len(split(spec)) > 1:
        return union([(name, open_source(one, root=root)) for name, one in named(spec)], spec)
    base, filters = uncut(spec)
    group = inside(base)
    return cut(_open(base, root) if group is None else open_source(group, root=root), filters)


def cut(source: Source, filters: str) -> Source:
    """A source under more filters, such as "[:-1000]"; of a union they cut the whole.

    Its spec opens the same images again.

    Raises:
      ValueError: what is wrong with a filter, or no image is left.
    """
    rest, filters = uncut(filters)
    if rest:
        raise ValueError(f"{rest!r} is no filter; write {FILTERS}")
    texts = re.findall(r"\[([^\[\]]*)\]", filters)
    if len(texts) > MOST_FILTERS:
        raise ValueError(f"{len(texts)} filters behind one source; use up to {MOST_FILTERS}")
    opened = source.spec
    for text in texts:
        opened = filtered(opened, f"[{text}]")
        source = _filtered(source, text.strip(), opened)
    return source


def filtered(spec: str, filters: str) -> str:
    """The text of the source `spec` under more filters; of a union they cut the whole."""
    return (f"({spec})" if len(split(spec)) > 1 else spec.strip()) + filters


def _open(spec: str, root: str) -> Source:
    kind, colon, where = spec.partition(":")
    if kind not in KINDS or not colon:
        union = UNION if re.search(r"[+()]|=\w+:", spec) else ""
        raise ValueError(f"{spec!r} is not a source: write {', '.join(KINDS.values())}{union}")
    if not where:
        raise ValueError(f"{spec!r} names nothing: write {KINDS[kind]}")
    if kind == "builtin":
        from ood_jax.data.builtin import open_builtin

        return open_builtin(where)
    if kind == "noise":
        from ood_jax.data.noise import open_noise

        return open_noise(where)
    if kind == "tfds":
        from ood_jax.data.prepared import open_tfds

        return open_tfds(where, spec, root)
    from ood_jax.data.files import open_arrays, open_folder, open_list

    if kind == "list":
        return open_list(where, spec, root)
    path = under(root, where)
    return open_folder(path, spec) if kind == "folder" else open_arrays(path, spec)


def _filtered(source: Source, text: str, spec: str) -> Source:
    """`source`, called `spec`, under one filter."""
    name, equals, value = text.partition("=")
    if name.strip() != "renumber" or not equals:
        return take(source, _rows(source, text, spec), spec)
    rows, numbers = _of_classes(source, value, spec)
    return renumbered(take(source, rows, spec), numbers)


def _rows(source: Source, text: str, spec: str) -> np.ndarray:
    """The indices that one filter keeps, int64."""
    cut = re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?", text)
    if cut:
        start, stop = (None if part is None else int(part) for part in cut.groups())
        return np.arange(len(source))[start:stop]
    name, equals, value = text.partition("=")
    sampled = re.fullmatch(r"\s*(\d{1,18})(?:@(\d{1,18}))?", value)
    if name.strip() == "sample" and sampled:
        return _sample(len(source), int(sampled[1]), int(sampled[2] or 0), spec)
    if name.strip() != "classes" or not equals:
        raise ValueError(f"{spec!r}: no filter [{text}]; write {FILTERS}")
    return _of_classes(source, value, spec)[0]


def _of_classes(source: Source, text: str, spec: str) -> tuple[np.ndarray, list[int]]:
    """The indices, int64, and the labels of the classes that a filter names."""
    labels = source.labels
    if labels is None:
        raise ValueError(f"{spec!r}: the set has no labels; leave filters by class out")
    numbers = class_numbers(text, source.classes, labels, spec)
    return np.flatnonzero(np.isin(labels, numbers)), numbers


def _sample(count: int, wanted: int, seed: int, spec: str) -> np.ndarray:
    if not 1 <= wanted <= count:
        raise ValueError(f"{spec!r}: a sample of {wanted} of {count} images; use 1 to {count}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, count))))
    return np.sort(rng.permutation(count)[:wanted])


def class_numbers(text: str, classes: tuple[str, ...], labels: np.ndarray, spec: str) -> list[int]:
    """The labels that "0-4,7" or "cat,dog" stands for, in that order; digits are always numbers.

    Args:
      classes: names of the labels, () = unknown. labels: int [N], those that the set has. spec:
        what errors call the text.

    Raises:
      ValueError: no such class, with the nearest name.
    """
    known = range(len(classes)) if classes else np.unique(labels[labels >= 0]).tolist()
    return [n for token in text.split(",") for n in _numbers(token.strip(), classes, known, spec)]


def _numbers(token: str, classes: tuple[str, ...], known: Sequence[int], spec: str) -> list[int]:
    """The labels among `known` that "7", "0-4" or a class name stands for."""
    span = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", token)
    if span:
        low, high = int(span[1]), int(span[2] or span[1])
        if low in known and high in known and low <= high:
            return [n for n in known if low <= n <= high]
    elif token in classes:
        return [classes.index(token)]
    close = difflib.get_close_matches(token, classes, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    names = [f"{i} {name}" for i, name in enumerate(classes)] or [str(i) for i in known]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    raise ValueError(f"{spec!r}: no class {token!r}; {hint}there are {listed}")
