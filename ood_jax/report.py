"""Compares scored runs on one page: tables, histograms, ROC curves, features, worst mistakes.

python -m ood_jax.report --workdirs=A,B,... --out=DIR [--projection=pca|tsne] [--clp=ROOT]

Each workdir holds results.json and the files that ood_jax.score left beside it; what is absent is
left out, and the page says so. Runs that differ only in the seed share a row, with mean and sample
deviation. --workdirs may be repeated. Writes DIR/report.html, one file with all in it, and the same
as DIR/report.md with its pictures in DIR/figures/. Needs neither a GPU nor the checkpoints.
ROOT is a folder that python -m ood_jax.clp wrote to: how hard OOD classes and images are to detect.
Norms of features over training are shown of workdirs that python -m ood_jax.norms has measured,
and outliers of runs that mined or generated them.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ood_jax import command
from ood_jax.untrusted import MISSHAPEN

if TYPE_CHECKING:
    from etils import epath

    from ood_jax.reporting.blocks import Block, Report, Section
    from ood_jax.reporting.clp_read import Clp
    from ood_jax.reporting.variants import Variant

PROJECTIONS = {"pca": "first two principal axes of the train features", "tsne": "t-SNE"}
SCORES = (
    "Each panel: in-distribution test images (filled) against one OOD set (outline), higher = more"
    " OOD to the right; each area is one. The ends hold the half percent beyond them. Dashed: the"
    " calibrated threshold; what lies right of it is rejected."
)
ROC = (
    "Share of OOD images called OOD against share of in-distribution test images called so, over"
    " all thresholds; the numbers are AUROC in %. Grey: guessing."
)
GALLERY = (
    "Large: the image, the worst first; small: its nearest train images with their cosine."
    " OOD rank: percent of in-distribution test images that look more in-distribution. Higher score"
    " = more OOD. Shown for the first run of each row of the tables."
)


def report(workdirs: Sequence[str], projection: str = "pca", clp: str | None = None) -> "Report":
    """Everything that the page says, from the files of `workdirs`.

    Args:
      projection: pca or tsne, of the features.
      clp: the folder of ood_jax.clp's results; None = no section on them.

    Raises:
      ValueError: a folder without results.json, or clp without clp.json; one that cannot be read.
    """
    from ood_jax.reporting import clp_read
    from ood_jax.reporting.blocks import Report, clean
    from ood_jax.reporting.variants import variants
    from ood_jax.reporting.workdirs import read

    confusion = None if clp is None else clp_read.read(clp)
    runs = []
    for workdir in dict.fromkeys(workdirs):
        _say(f"reading {workdir}")
        runs.append(read(workdir))
    found = variants(runs)
    names = [variant.name for variant in found]
    title = f"Out-of-distribution detection: {', '.join(names[:4])}"
    if len(names) > 4:
        title += f" and {len(names) - 4} more"
    lead = (
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'},"
        f" {len(found)} {'setting' if len(found) == 1 else 'settings'}."
        " Higher scores = more out-of-distribution, everywhere."
    )
    return Report(clean(title), lead, tuple(_sections(found, projection, confusion)))


def _sections(
    found: "Sequence[Variant]", projection: str, confusion: "Clp | None"
) -> "list[Section]":
    from ood_jax.reporting import (
        across,
        clp,
        confidence,
        curves,
        facts,
        figures,
        gallery,
        norms,
        outliers,
        rank_spread,
        tables,
    )
    from ood_jax.reporting import projection as projections
    from ood_jax.reporting.blocks import Section, Text

    runs = [run for variant in found for run in variant.runs]
    described = Text(
        f"Features projected on the {PROJECTIONS['pca']}."
        if projection == "pca"
        else "t-SNE of the features: distances between groups mean little."
    )
    per_variant = Text("Shown for the first run of each row of the tables.")
    more = {}
    if confusion is not None:
        more["AUROC against CLP"] = lambda: clp.against_clp(found, confusion)
    if confidence.wanted(runs):
        more["Confidence of both classifiers"] = lambda: confidence.confidence(found)
    if norms.wanted(runs):
        more["Norms of features"] = lambda: norms.norms(found)
    if outliers.wanted(runs):
        more["Outliers"] = lambda: outliers.outliers(found)
    makers = {
        "What was compared": lambda: facts.compared(found),
        "Detection": lambda: [*tables.detection(found), *rank_spread.rank_spread(found)],
        "In distribution, and at the threshold": lambda: [
            *facts.in_distribution(found),
            *facts.thresholds(found),
        ],
        "Scorers": lambda: facts.of_scorers(found),
        "Score histograms": lambda: [Text(SCORES), *figures.histograms(runs)],
        "ROC curves": lambda: [Text(ROC), *figures.roc_curves(runs)],
        "Features": lambda: [described, per_variant, *projections.projections(found, projection)],
        "Worst mistakes": lambda: [Text(GALLERY), *gallery.gallery(found)],
        **more,
        "Across runs": lambda: across.across(found),
        "Training": lambda: curves.curves(runs),
    }
    out = []
    for title, make in makers.items():
        _say(title.lower())
        out.append(Section(title, _blocks(title, make)))
    return out


def _blocks(title: str, make: "Callable[[], Iterable[Block]]") -> "tuple[Block, ...]":
    """What `make` makes; results.json and its like may hold anything.

    Raises:
      ValueError: they are of another shape than scoring gives them.
    """
    try:
        return tuple(make())
    except MISSHAPEN as error:
        raise ValueError(
            f"{title}: the runs' files have another shape than scoring gives them"
            f" ({type(error).__name__}: {error}); score again"
        ) from error


def write(made: "Report", folder: "epath.Path") -> None:
    """FOLDER/report.html, FOLDER/report.md and FOLDER/figures/; the HTML last.

    Raises:
      ValueError: they cannot be written there.
    """
    from ood_jax.atomic import replaced
    from ood_jax.reporting.markdown import FOLDER, markdown
    from ood_jax.reporting.page import page

    text, pictures = markdown(made)
    files = {f"{FOLDER}/{name}": content for name, content in pictures.items()}
    files |= {"report.md": text.encode(), "report.html": page(made).encode()}
    for name, content in files.items():
        with replaced(folder / name) as fresh:
            fresh.write_bytes(content)


def split_folders(texts: Sequence[str]) -> list[str]:
    """The folders that A,B,... means; a folder's own name may have commas, as those of a sweep."""
    from ood_jax.place import kind, place

    out: list[str] = []
    for text in texts:
        pieces = text.split(",")
        while pieces:
            count = next(
                (
                    n
                    for n in range(len(pieces), 0, -1)
                    if kind(place(",".join(pieces[:n]))) == "folder"
                ),
                1,
            )
            out.append(",".join(pieces[:count]))
            pieces = pieces[count:]
    return [folder for folder in out if folder]


def _say(text: str) -> None:
    print(f"report: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.report", __doc__)
    add = parser.add_argument
    add("--workdirs", action="append", required=True, metavar="A,B,...", help="scored runs")
    add("--out", required=True, metavar="DIR", help="where the report goes")
    add("--projection", choices=list(PROJECTIONS), default="pca", help="of the features")
    add("--clp", metavar="ROOT", help="where python -m ood_jax.clp wrote to")
    options = parser.parse_args(argv)

    def act() -> None:
        from ood_jax.place import place

        folder = place(options.out)
        workdirs = split_folders(options.workdirs)
        if not workdirs:
            raise ValueError("--workdirs is empty: name one scored run or more")
        write(report(workdirs, options.projection, options.clp), folder)
        _say(f"written: {folder / 'report.html'}, {folder / 'report.md'}")

    return command.answered(act, stopped="an earlier report is as it was, or partly new")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
