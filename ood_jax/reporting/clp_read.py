"""What `python -m ood_jax.clp` left in its folder, and which of its sets a run's sets are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax.data.union import uncut
from ood_jax.place import kind, local, place
from ood_jax.reporting.blocks import clean
from ood_jax.untrusted import UNREADABLE, check_table, read_json

SCHEMA = 1
FILE, IMAGES = "clp.json", "clp_images.parquet"


class ClpSet(NamedTuple):
    """One labelled set. source: of its test part. classes: by label, NAME/CLASS or as they are."""

    name: str
    source: str
    classes: tuple[str, ...]

    def class_name(self, label: int) -> str:
        """The class's name; with the set's where it is but a number."""
        known = label < len(self.classes)
        name = clean(self.classes[label].removeprefix(f"{self.name}/")) if known else str(label)
        return f"{clean(self.name)} {name}" if name.isdigit() else name


class Clp(NamedTuple):
    """Confusion log probabilities, natural logarithms; nearer 0 = nearer OOD.

    members: of the ensemble. dataset: inside -> outside -> CLP. classwise: inside -> outside ->
    label -> CLP. All are finite: classes without a number are not there.
    """

    root: epath.Path
    members: int
    sets: tuple[ClpSet, ...]
    dataset: dict[str, dict[str, float]]
    classwise: dict[str, dict[str, dict[int, float]]]


class Images(NamedTuple):
    """One outside set. source: without filters. names: pyarrow array [N]. labels: int64 [N], within
    the set, -1 = none. clp: float64 [N]."""

    source: str
    names: Any
    labels: np.ndarray
    clp: np.ndarray


def read(root: str) -> Clp:
    """Reads ROOT/clp.json.

    Raises:
      ValueError: there is none, or one that this version cannot read.
    """
    path = place(root) / FILE
    if kind(path) != "file":
        raise ValueError(
            f"--clp={root}: there is no {path}; write it, python -m ood_jax.clp --workdir={root}"
        )
    again = f"make it again, python -m ood_jax.clp --workdir={root}"
    try:
        found = read_json(path)
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']!r}; this version reads {SCHEMA}")
        return _parsed(path.parent, found)
    except UNREADABLE as error:
        reason = clean(f"{type(error).__name__}: {error}")
        raise ValueError(f"--clp={root}: {path} cannot be read ({reason}); {again}") from None


def _parsed(root: epath.Path, found: dict[str, Any]) -> Clp:
    sets = tuple(
        ClpSet(str(one["name"]), str(one["source"]), tuple(map(str, one["classes"])))
        for one in found["sets"]
    )
    classwise = {
        inside: {
            outside: {int(label): value for label, value in _finite(by_label).items()}
            for outside, by_label in by_set.items()
        }
        for inside, by_set in found["classwise"].items()
    }
    dataset = {inside: _finite(by_set) for inside, by_set in found["dataset"].items()}
    return Clp(root, len(found["members"]), sets, dataset, classwise)


def _finite(numbers: dict[str, Any]) -> dict[str, float]:
    kept = {key: float(value) for key, value in numbers.items() if value is not None}
    return {key: value for key, value in kept.items() if np.isfinite(value)}


def match(clp: Clp, source: str, name: str) -> ClpSet | None:
    """The set of `clp` that a run's set `name` of `source` is, None = none of them.

    The same source, filters and all; else the same source without them, of the same name where
    several have it; else the same name.
    """
    base = uncut(source.strip())[0]
    tests: tuple[Callable[[ClpSet], bool], ...] = (
        lambda one: one.source.strip() == source.strip(),
        lambda one: uncut(one.source.strip())[0] == base and one.name == name,
        lambda one: uncut(one.source.strip())[0] == base,
        lambda one: one.name == name,
    )
    for test in tests:
        found = [one for one in clp.sets if test(one)]
        if len(found) == 1:
            return found[0]
    return None


def images(clp: Clp, inside: str) -> dict[str, Images]:
    """ROOT/clp_images.parquet: outside set -> its images' CLP for `inside`.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    from pyarrow import compute, parquet

    path = clp.root / IMAGES
    if kind(path) != "file":
        raise ValueError(f"{clp.root} has no {IMAGES}")
    columns = ["set", "source", "image", "label", "clp"]
    try:
        with local(path) as near:
            check_table(near)
            table = parquet.read_table(near, columns=columns, filters=[("inside", "=", inside)])
        out = {}
        for name in compute.unique(table["set"]).to_pylist():
            part = table.filter(compute.equal(table["set"], name))
            labels = compute.fill_null(compute.cast(part["label"], "int64"), -1).to_numpy()
            values = compute.cast(part["clp"], "float64").to_numpy()
            source = str(part["source"][0].as_py())
            out[name] = Images(source, part["image"].combine_chunks(), labels, values)
        return out
    except UNREADABLE as error:
        raise ValueError(clean(f"{IMAGES} cannot be read ({error})")) from None


def find(found: Images, names: Any) -> tuple[np.ndarray, np.ndarray]:
    """(CLP float64 [N], NaN = none; label int64 [N], -1 = none) of the images `names` [N]."""
    from pyarrow import compute

    places = compute.fill_null(compute.index_in(names, value_set=found.names), -1).to_numpy()
    return np.append(found.clp, np.nan)[places], np.append(found.labels, -1)[places]
