"""Runs that share everything but the seed, as one row; and what differs between the others."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ood_jax.config import INCIDENTAL
from ood_jax.gather import merged
from ood_jax.reporting.blocks import clean
from ood_jax.reporting.workdirs import Run

ALIKE = ("seed", *INCIDENTAL, "score.batch", "score.block", "score.bank_memory")
PARTS = ("in_distribution", "scorers", "sets", "near", "far")


class Variant(NamedTuple):
    """Runs of one config and step that differ in the seed.

    numbers: the PARTS of results.json with each number replaced by {"mean", "std", "n", "values"},
    as ood_jax.gather has them.
    """

    name: str
    runs: tuple[Run, ...]
    numbers: dict[str, Any]


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Groups the runs, in order of appearance, and gives every run a label of its own."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        same, copy = _identity(run), 0
        while any(seed(run) == seed(other) for other in groups.get((same, copy), ())):
            copy += 1  # the same seed twice says nothing about the spread over seeds
        groups.setdefault((same, copy), []).append(run)
    names = _names([members[0] for members in groups.values()])
    return [_variant(name, members) for name, members in zip(names, groups.values(), strict=True)]


def seed(run: Run) -> Any:
    """The run's seed, None where its config has none."""
    return run.config.get("seed")


def _identity(run: Run) -> str:
    """Equal for runs of one variant."""
    kept = {key: value for key, value in run.config.items() if key not in ALIKE}
    return json.dumps([run.step, kept], sort_keys=True)


def _variant(name: str, members: list[Run]) -> Variant:
    several = len(members) > 1
    labelled = tuple(
        run._replace(label=f"{name}, seed {seed(run)}" if several else name) for run in members
    )
    numbers = {
        part: merged([(seed(run), run.results.get(part) or {}) for run in members])
        for part in PARTS
    }
    return Variant(name, labelled, numbers)


def _names(firsts: list[Run]) -> list[str]:
    """Each run's name, with the settings that tell it from others of that name."""
    out: list[str] = []
    for run in firsts:
        alike = [other for other in firsts if other.name == run.name]
        keys = [key for key in differing(alike) if key not in ALIKE]
        settings = ", ".join(f"{key}={shown(run.config.get(key))}" for key in keys)
        name = f"{run.name} ({clean(settings)})" if 0 < len(settings) <= 60 else run.name
        if len({other.step for other in alike}) > 1:
            name = f"{name}, step {run.step:,}"
        out.append(name)
    return [
        name if out.count(name) == 1 else f"{name} #{out[: i + 1].count(name)}"
        for i, name in enumerate(out)
    ]


def differing(runs: Sequence[Run]) -> list[str]:
    """Config keys that two of the runs set to different values, in the config's order."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if len({json.dumps(run.config[key]) for run in runs if key in run.config}) > 1
    ]


def partial(runs: Sequence[Run]) -> list[str]:
    """Config keys that only some of the runs have, as runs of different versions do."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if not all(key in run.config for run in runs)]


def shown(value: Any) -> str:
    """A config value as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "()"
    return str(value) if value != "" else '""'
