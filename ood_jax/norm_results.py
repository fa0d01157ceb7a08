"""norms.json: what it holds, whether what it holds is still good, and its tables on screen."""

import json
import sys
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ood_jax.cache import digest, stamp
from ood_jax.checkpoint import FREE_KEYS, Restored, restore_for_scoring
from ood_jax.config import flat, from_json, to_json
from ood_jax.norm_sets import Part
from ood_jax.scorers.views import RandomViews
from ood_jax.untrusted import MISSHAPEN, read_json

SCHEMA = 1
WIDTH = 100  # where there is no terminal


def header(
    config: ConfigDict, parts: dict[str, Part], images: int, drawn: RandomViews
) -> dict[str, Any]:
    """norms.json without its steps: what they depend on, as JSON has it."""
    settings = {
        "images": images,
        "augmentations": drawn.augmentations,
        "crop_scale": list(drawn.crop_scale),
        "f": f"projections, else {drawn.feature}",
    }
    sets = {
        name: {
            "role": part.role,
            "source": part.source.spec,
            "images": len(part.source),
            "quarter_turns": list(part.turns),
            "stamp": stamp(part.source.spec, config.data.root),
        }
        for name, part in parts.items()
    }
    return {
        "schema": SCHEMA,
        "name": config.name or config.method.name,
        "config": json.loads(to_json(config)),
        "settings": settings,
        "sets": sets,
    }


def earlier(
    path: epath.PathLike, wanted: dict[str, Any], workdir: str, steps: list[int]
) -> dict[str, Any]:
    """The steps of an earlier measurement that is still good; {} = there is none.

    Among them those whose checkpoints the run has since deleted.
    """

    def identity(of: dict[str, Any]) -> dict[str, Any]:
        config = flat(from_json(json.dumps(of["config"])))
        own = {key: value for key, value in config.items() if not key.startswith(FREE_KEYS)}
        return {"config": own} | {key: of[key] for key in ("schema", "settings", "sets")}

    try:
        found = read_json(path)
        if identity(found) != identity(wanted):
            return {}
        arrays = {step: one["arrays"] for step, one in found["steps"].items()}
    except (OSError, *MISSHAPEN):
        return {}  # none, or one that no version has written
    for step in steps:
        if arrays.get(str(step), "") not in ("", arrays_of(restore_for_scoring(workdir, step))):
            return {}  # trained anew: what it holds of checkpoints that are gone is of another run
    return found["steps"]


def arrays_of(restored: Restored) -> str:
    """What tells a checkpoint's network from another of the same step."""
    return digest((restored.params, restored.stats))


def show(found: dict[str, Any]) -> None:
    """Prints two tables, a row for each step: mean norms of all sets, AUROCs of the OOD sets."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    outside = [name for name, one in found["sets"].items() if one["role"] not in ("train", "test")]
    for title, names, cell in (
        ("Mean norm |f(x)|", list(found["sets"]), _norm),
        ("AUROC of s_l2 | s_mu against the test set, %", outside, _aurocs),
    ):
        table = Table(title=Text(title, style="table.title"), title_justify="left", box=box.SIMPLE)
        for name in ("step", *names):
            table.add_column(Text(name), justify="right")
        for step, one in found["steps"].items():
            cells = [cell(one["sets"][name]) for name in names]
            table.add_row(f"{int(step):,}", *cells)
        if names:
            console.print(table)


def _norm(of: dict[str, Any]) -> str:
    return _shown(of["norm"]["mean"], "{:.4g}")


def _aurocs(of: dict[str, Any]) -> str:
    return " | ".join(_shown(value and 100 * value, "{:.1f}") for value in of["auroc"].values())


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
