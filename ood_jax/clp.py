"""Confusion log probability: how hard it is to tell one set from another (Winkens et al. 2020).

python -m ood_jax.clp --workdir=ROOT [--inside=NAME] [--out=DIR]

ROOT is the folder of a sweep over seeds, whose runs are classifiers of a union of labelled sets:

python -m ood_jax.sweep --config=configs/clp.py --workdir=ROOT --seeds=0,1,2,3,4

The finished runs beneath it are the ensemble. CLP is the log of the probability that it gives an
image of one set to the classes of another: -0.5 is near, -12 is far. On screen: every set against
the classes of --inside, by default the union's first set. Written, into ROOT unless --out says
otherwise: clp.json (all pairs of sets: by set and by class, and the confusion matrix),
clp_images.parquet (by image), clp.npz (class confusions and distances), and the pictures
clp_confusion and clp_dendrogram, .svg and .png.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ood_jax import command, cpu

if TYPE_CHECKING:  # jax and what needs it are imported where used: --help does not wait
    from etils import epath

    from ood_jax.clp_results import PerImage
    from ood_jax.data.source import Source
    from ood_jax.ensemble import Judged

SHOWN = 3  # nearest and farthest classes in the table
WIDTH = 100  # where there is no terminal


def measure(workdir: str, *, inside: str | None = None, out: str | None = None) -> dict[str, Any]:
    """Measures the ensemble under `workdir`, writes and prints the results, and returns clp.json's.

    inside: the set whose table is printed; None = the union's first. out: a folder; None =
    `workdir`.

    Raises:
      ValueError: in one line, whatever is wrong; before compute where it can be known.
    """
    from ood_jax import clp_results, ensemble
    from ood_jax.atomic import check_writable
    from ood_jax.place import kind, place

    folder = place(workdir if out is None else out)
    if kind(folder) == "file":
        raise ValueError(f"--out={out} is a file: name a folder")
    members = ensemble.members(workdir)
    test = ensemble.open_union(members[0])
    inside = _known(inside, [part.name for part in test.parts])
    check_writable(folder)
    judged = ensemble.judge(members, test)
    per_image = clp_results.image_wise(test, judged)
    found = clp_results.results(members, test, judged, per_image)
    _write(found, test, judged, per_image, folder)
    show(found, inside)
    print(f"written: {folder / 'clp.json'}", file=sys.stderr)
    return found


def _known(inside: str | None, names: list[str]) -> str:
    if inside is None:
        return names[0]
    if inside not in names:
        close = difflib.get_close_matches(inside, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"--inside={inside}: {hint}the union has {', '.join(names)}")
    return inside


def _write(
    found: dict[str, Any],
    test: "Source",
    judged: "Judged",
    per_image: "PerImage",
    folder: "epath.Path",
) -> None:
    """Everything, the JSON last: where it is, the rest is there too."""
    from pyarrow import parquet

    from ood_jax import clp_figures, clp_results
    from ood_jax.atomic import replaced

    with replaced(folder / "clp_images.parquet") as fresh:
        parquet.write_table(clp_results.image_table(test, judged, per_image), fresh)
    arrays: Any = clp_results.class_arrays(test, judged)
    with replaced(folder / "clp.npz") as fresh, open(fresh, "wb") as file:
        np.savez(file, **arrays)
    clp_figures.write(found, arrays, folder)
    with replaced(folder / "clp.json") as fresh:
        fresh.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def show(found: dict[str, Any], inside: str) -> None:
    """Prints every set against the classes of `inside`, nearest first; plain text in a file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    title = Text(f"Confusion log probability of {inside} classes", style="table.title")
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("OOD set", no_wrap=True)
    table.add_column("CLP", justify="right", no_wrap=True)
    table.add_column("range over classes", justify="right", no_wrap=True)
    table.add_column("nearest classes", overflow="fold")
    table.add_column("farthest classes", overflow="fold")
    for row in table_rows(found, inside):
        table.add_row(*map(Text, row))
    console.print(table)
    each = [member["accuracy"] for member in found["members"]]
    count = f"{len(each)} member{'s' * (len(each) > 1)}"
    together = f"{100 * found['accuracy']:.2f} %"
    if len(each) > 1:
        together = f"{100 * min(each):.2f} to {100 * max(each):.2f} %, together {together}"
    console.print(Text(f"{count}: accuracy over all classes {together}"))


def table_rows(found: dict[str, Any], inside: str) -> list[tuple[str, ...]]:
    """(OOD set, CLP, range over its classes, its nearest classes, its farthest), nearest first."""
    names = {one["name"]: one["classes"] for one in found["sets"]}
    rows: list[tuple[str, ...]] = []
    by_set = found["dataset"][inside]
    for outside in sorted(by_set, key=by_set.__getitem__, reverse=True):
        by_class = found["classwise"][inside][outside]
        order = [names[outside][int(c)] for c in sorted(by_class, key=by_class.__getitem__)]
        shown = min(SHOWN, len(order) // 2)
        low, high = found["range"][inside][outside]
        near, far = order[::-1][: max(shown, 1)], order[:shown]
        rows.append(
            (
                outside,
                f"{by_set[outside]:.1f}",
                f"{low:.1f} to {high:.1f}" if len(order) > 1 else f"{low:.1f}",
                ", ".join(near),
                ", ".join(far),
            )
        )
    return rows


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.clp", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, metavar="ROOT", help="folder of the members' sweep")
    add("--inside", metavar="NAME", help="the set whose table is printed; the first by default")
    add("--out", metavar="DIR", help="where results go; ROOT by default")
    options = parser.parse_args(argv)

    def act() -> None:
        measure(options.workdir, inside=options.inside, out=options.out)

    return command.answered(act, stopped="logits of the members that were done are kept")


if __name__ == "__main__":
    cpu.prepare("ood_jax.clp")
    sys.exit(main(sys.argv[1:]))
