"""Which test images a run was trained with: transductive sets, and their sign in every table.

Two images are the same where their sources are (kind:where, after unions and filters) and their
rows in these. A copy of a set under another name is not seen.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ood_jax.data.source import Source, take
from ood_jax.data.sources import open_source
from ood_jax.data.union import singles, uncut
from ood_jax.place import is_remote, under

SIGN = "†"
MEANING = f"{SIGN}: transductive, images of the set were among those of training"
ON_DISK = ("npz", "folder", "list")  # kinds whose sets are paths


class Common(NamedTuple):
    """counts: scored set -> its images that training had; sets without any are not there.

    unopened: sources of training that cannot be opened, and why. Of a scored set that reads the
    same kind:where as one of them, all such images count.
    """

    counts: dict[str, int]
    unopened: dict[str, str]


def in_common(
    trained: Iterable[str],
    scored: Mapping[str, Source],
    *,
    root: str = "",
    scored_root: str | None = None,
) -> Common:
    """Images of each of `scored` that are in one of the sources `trained`.

    Only sources that read the same kind:where are opened. root: that relative paths of `trained`
    lie in; scored_root: of `scored`, None = the same.
    """
    own = root if scored_root is None else scored_root
    theirs = {name: _named_alike(origins(source), own) for name, source in scored.items()}
    found = {
        name: {base: np.zeros(len(r), bool) for base, r in o.items()} for name, o in theirs.items()
    }
    unopened: dict[str, str] = {}
    for spec in dict.fromkeys(trained):
        bases = {_identity(base, root) for base in _bases(spec)}
        shared = {base for held in theirs.values() for base in held if base in bases}
        if not shared:
            continue
        ours: dict[str, np.ndarray] | None = None
        try:
            ours = _named_alike(origins(open_source(spec, root=root)), root)
        except (ValueError, OSError) as error:
            unopened[spec] = " ".join(str(error).split())
        for name, held in theirs.items():
            for base in held.keys() & shared:
                seen = True if ours is None else np.isin(held[base], ours.get(base, ()))
                found[name][base] |= seen
    counts = {name: int(sum(map(np.sum, held.values()))) for name, held in found.items()}
    return Common({name: count for name, count in counts.items() if count}, unopened)


def origins(source: Source) -> dict[str, np.ndarray]:
    """KIND:WHERE -> the rows of it that a source reads, int64 ascending, each once."""
    rows = np.arange(source.count) if source.rows is None else source.rows
    if not source.joined:
        return {uncut(source.spec)[0]: np.unique(rows)}
    out: dict[str, np.ndarray] = {}
    first = 0
    for one in source.joined:
        own = rows[(rows >= first) & (rows < first + len(one))] - first
        first += len(one)
        for base, held in origins(take(one, own, one.spec)).items() if len(own) else ():
            out[base] = np.union1d(out.get(base, held), held)
    return out


def sources_of(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """data.train and data.auxiliary of configs as JSON trees, each once."""
    named = [
        config.get("data", {}).get(key) for config in configs for key in ("train", "auxiliary")
    ]
    return list(dict.fromkeys(spec for spec in named if spec))


def marked(name: str, counts: Collection[str], *among: str) -> str:
    """`name`, with the sign where it, or one of the sets `among` that a mean is over, is marked."""
    return name + SIGN if any(one in counts for one in among or (name,)) else name


def counts_of(results: Mapping[str, Any]) -> dict[str, int]:
    """The counts in a results.json; {} of an earlier version, which looked for none."""
    found = results.get("transductive")
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(name): count for name, count in pairs if isinstance(count, int) and count > 0}


def lines(results: Mapping[str, Any]) -> list[str]:
    """What a results.json says of it in words; nothing where no set is transductive."""
    counts = counts_of(results)
    if not counts:
        return []
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    unopened = results.get("unopened")
    pairs = unopened.items() if isinstance(unopened, dict) else ()
    return [
        f"{MEANING}: {listed}",
        *(
            f"counted without opening {spec}, as if all of it were shared: {why}"
            for spec, why in pairs
        ),
    ]


def over_runs(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several results.json {"sets": {SET: its most images in training}, "groups": [GROUP, ...]}.

    groups: near and far, where a set in them is transductive. {} = no set is.
    """
    sets: dict[str, int] = {}
    groups: set[str] = set()
    for results in found:
        counts = counts_of(results)
        sets |= {name: max(count, sets.get(name, 0)) for name, count in counts.items()}
        groups |= {
            g for g, names in _groups(results).items() if not counts.keys().isdisjoint(names)
        }
    return {"sets": sets, "groups": sorted(groups)} if sets else {}


def _groups(results: Mapping[str, Any]) -> dict[str, list[str]]:
    found: Any = results.get("groups")
    pairs = found.items() if isinstance(found, dict) else ()
    return {group: list(names) for group, names in pairs if isinstance(names, list | tuple)}


def _bases(spec: str) -> list[str]:
    try:
        return singles(spec)
    except ValueError:  # no version that trained with it is this one
        return []


def _named_alike(rows: dict[str, np.ndarray], root: str) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for base, held in rows.items():
        name = _identity(base, root)
        out[name] = np.union1d(out.get(name, held), held)
    return out


def _identity(base: str, root: str) -> str:
    """KIND:WHERE, the same however a path is written."""
    kind, _, where = base.partition(":")
    if kind not in ON_DISK:
        return base
    path = under(root, where)
    return f"{kind}:{os.fspath(path) if is_remote(path) else os.path.realpath(path)}"
