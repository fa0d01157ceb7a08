"""From the text of a source to the images: KIND:WHERE, then any number of [filters].

`A + B` is the union of sources, each perhaps named, NAME=A + NAME=B, and cut as a whole by filters
behind parentheses, (A + B)[:1000].
"""

import difflib
import re
from pathlib import Path

import numpy as np

from ood_jax.data.source import CorruptImage, Part, Source, take
from ood_jax.data.union import inside, named, split, uncut, union

__all__ = ["KINDS", "CorruptImage", "Part", "Source", "cut", "open_source"]

KINDS = {
    "tfds": "tfds:NAME[/config][:split]",
    "folder": "folder:PATH",
    "list": "list:FILE[@FOLDER]",
    "npz": "npz:FILE",
    "builtin": "builtin:glyphs/SPLIT",
    "noise": "noise:gaussian",
}
UNION = "; a union is A + B or NAME=A + NAME=B, with spaces round the plus, and (A + B)[:9] cuts it"
FILTERS = "[:1000], [10:20], [-1000:], [classes=0-4,7] or [classes=cat,dog]"
SHOWN = 20  # classes that an error lists


def open_source(spec: str, *, root: str = "") -> Source:
    """Opens a source; KINDS has the forms, FILTERS what may follow, applied from left to right.

    Relative paths, the paths in lists and prepared TFDS sets lie in `root`, if given. Filters by
    class leave the labels' numbers as they are; how a union numbers them is in union.py.

    Raises:
      ValueError: in one line what is wrong: the kind, the path, the contents or a filter.
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
    opened = f"({source.spec})" if len(split(source.spec)) > 1 else source.spec
    for text in re.findall(r"\[([^\[\]]*)\]", filters):
        opened += f"[{text}]"
        source = take(source, _rows(source, text.strip(), opened), opened)
    return source


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
    path = Path(root).expanduser() / Path(where).expanduser()
    return open_folder(path, spec) if kind == "folder" else open_arrays(path, spec)


def _rows(source: Source, text: str, spec: str) -> np.ndarray:
    """The indices that one filter keeps, int64."""
    cut = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
    if cut:
        start, stop = (None if part is None else int(part) for part in cut.groups())
        return np.arange(len(source))[start:stop]
    name, equals, value = text.partition("=")
    if name.strip() != "classes" or not equals:
        raise ValueError(f"{spec!r}: no filter [{text}]; write {FILTERS}")
    labels = source.labels
    if labels is None:
        raise ValueError(f"{spec!r}: the set has no labels; leave [classes=...] out")
    wanted: list[int] = []
    for token in value.split(","):
        wanted += _numbers(token.strip(), source.classes, labels, spec)
    return np.flatnonzero(np.isin(labels, wanted))


def _numbers(token: str, classes: tuple[str, ...], labels: np.ndarray, spec: str) -> list[int]:
    """The labels that "7", "0-4" or a class name stands for; digits are always numbers."""
    span = re.fullmatch(r"(\d+)(?:-(\d+))?", token)
    known = list(range(len(classes))) if classes else sorted(set(labels[labels >= 0].tolist()))
    if span:
        low, high = int(span[1]), int(span[2] or span[1])
        if low in known and high in known and low <= high:
            return list(range(low, high + 1))
    elif token in classes:
        return [classes.index(token)]
    close = difflib.get_close_matches(token, classes, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    names = [f"{i} {name}" for i, name in enumerate(classes)] or [str(i) for i in known]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    raise ValueError(f"{spec!r}: no class {token!r}; {hint}there are {listed}")
