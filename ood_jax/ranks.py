"""How much the OOD rank of the same image varies between seeds: Winkens et al. (2020), Table 2."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax.place import kind, local, place
from ood_jax.untrusted import UNREADABLE, check_table

FILE = "scores.parquet"
TEST = "test"  # the in-distribution test set among the sets of FILE
_COLUMNS = ("image", "index", "set", "scorer", "ood_rank")


class Spread(NamedTuple):
    """points: OOD set -> scorer -> spread. left_out: why a set, or everything, is not there."""

    points: dict[str, dict[str, float]]
    left_out: tuple[str, ...]


class _Ranks(NamedTuple):
    """One set under one scorer, by row. images: dictionary array of names. ranks: percent."""

    images: Any
    rows: np.ndarray
    ranks: np.ndarray


_Found = dict[tuple[str, str], _Ranks]  # (set, scorer) ->


def spread(workdirs: Mapping[Any, epath.PathLike]) -> Spread:
    """Mean over a set's images of the deviation over seeds of the image's OOD rank.

    The sample standard deviation, divisor n - 1, in points of the rank, which is in percent. Images
    are the same where set, name and row are; a set that has others in one run than in another is
    left out, and all are where a run has no readable scores.parquet.

    Args:
      workdirs: seed -> the scored workdir, of runs that differ in nothing else.
    """
    if len(workdirs) < 2:
        return Spread({}, ("one seed has no spread of OOD ranks",))
    found: list[_Found] = []
    for seed, workdir in workdirs.items():
        path = place(workdir) / FILE
        if kind(path) != "file":
            return Spread({}, (f"seed {seed} has no {FILE}",))
        try:
            found.append(_read(path))
        except UNREADABLE as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return Spread({}, (f"{FILE} of seed {seed} cannot be read ({text})",))
    return _spread(found)


def _spread(found: list[_Found]) -> Spread:
    points: dict[str, dict[str, float]] = {}
    left_out: dict[str, None] = {}
    for name, scorer in dict.fromkeys(key for one in found for key in one):
        ranks = [one[name, scorer] for one in found if (name, scorer) in one]
        if len(ranks) < len(found):
            left_out[f"{name}: not every seed was scored with {scorer}"] = None
        elif not all(_same_images(ranks[0], other) for other in ranks[1:]):
            left_out[f"{name}: its images differ between seeds"] = None
        elif not all(np.isfinite(one.ranks).all() for one in ranks):
            left_out[f"{name}: an OOD rank of {scorer} is no number"] = None
        else:
            deviations = np.std([one.ranks for one in ranks], axis=0, ddof=1)
            points.setdefault(name, {})[scorer] = float(deviations.mean())
    return Spread(points, tuple(left_out))


def _same_images(one: _Ranks, other: _Ranks) -> bool:
    same = np.array_equal(one.rows, other.rows)
    return same and one.images.dictionary_decode().equals(other.images.dictionary_decode())


def _read(path: epath.Path) -> _Found:
    return {(name, scorer): ranks for name, scorer, ranks in _parts(path) if name != TEST}


def _parts(path: epath.Path) -> Iterator[tuple[str, str, _Ranks]]:
    from pyarrow import parquet

    texts = ["image", "set", "scorer"]
    with local(path) as near:
        check_table(near)
        table = parquet.read_table(near, columns=list(_COLUMNS), read_dictionary=texts)
    table = table.unify_dictionaries().combine_chunks()
    images, sets, scorers = (_whole(table[name]) for name in texts)
    rows, ranks = table["index"].to_numpy(), table["ood_rank"].to_numpy()
    kinds = len(scorers.dictionary)
    codes = sets.indices.to_numpy().astype(np.int64) * kinds + scorers.indices.to_numpy()
    order = np.lexsort((rows, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for part in np.split(order, starts[1:]) if len(order) else ():
        name, scorer = divmod(int(codes[part[0]]), kinds)
        own = _Ranks(images.take(part), rows[part], ranks[part])
        yield sets.dictionary[name].as_py(), scorers.dictionary[scorer].as_py(), own


def _whole(column: Any) -> Any:
    """A chunked dictionary column as one dictionary array."""
    import pyarrow as pa

    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
