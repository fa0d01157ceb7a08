"""Judges one's own images with a trained run.

python -m ood_jax.predict --workdir=W --images=PATH [--scorer=NAME] [--out=predictions.csv]
    [--neighbours=3] [--export=FILE.stablehlo]

PATH: a folder of images with any subfolders, one image, or a source (list:FILE, npz:FILE, ...);
from where the command runs, not from the run's data.root.
A line an image: path, score (higher = more OOD), ood_rank (percent of the calibration images that
look more in-distribution), verdict (in | ood, by the run's calibrated threshold; unreadable for
files that cannot be decoded, which stand last), and the nearest train images with their cosines.
--export writes the fitted detector as one file that runs without ood_jax (see export.py).
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ood_jax import command, cpu

if TYPE_CHECKING:  # jax and what needs it are imported where used: --help does not wait
    from etils import epath

    from ood_jax.data.source import Source
    from ood_jax.detector import Detector


class Counts(NamedTuple):
    """Images of each verdict, and the names of those that cannot be read."""

    inside: int
    ood: int
    unreadable: list[str]


def predict(
    detector: "Detector", source: "Source", out: "epath.Path", neighbours: int = 3
) -> Counts:
    """Writes a CSV line for every image of `source`, batch by batch, and shows how far it is.

    Raises:
      ValueError: no image can be read, or `out` cannot be written.
      OSError: a disk that is full or gone.
    """
    from ood_jax.atomic import replaced
    from ood_jax.progress import Progress

    counts = Counts(0, 0, [])
    with (
        Progress(len(source), unit="images", label="predict") as bar,
        replaced(out) as fresh,
        open(fresh, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header(neighbours))
        for rows, names in _judged(detector, source, neighbours):
            writer.writerows(rows)
            ood = sum(row[3] == "ood" for row in rows)
            counts = Counts(
                counts.inside + len(rows) - ood, counts.ood + ood, counts.unreadable + names
            )
            bar.update(len(rows) + len(names))
        writer.writerows([name, "", "", "unreadable"] for name in counts.unreadable)
    return counts


def header(neighbours: int) -> list[str]:
    """The columns of the CSV."""
    nearest = [f"{kind}_{i + 1}" for i in range(neighbours) for kind in ("nearest", "cosine")]
    return ["path", "score", "ood_rank", "verdict", *nearest]


def _judged(
    detector: "Detector", source: "Source", neighbours: int
) -> Iterator[tuple[list[list[Any]], list[str]]]:
    """(lines, names of unreadable images) of one batch after the other."""
    from ood_jax.data.pipeline import eval_batches

    size = detector.network.config.score.batch
    batches = eval_batches(source, batch=size, size=detector.size, memory=0)
    for number, batch in enumerate(batches):
        present = range(min(size, len(source) - number * size))
        names = [source.name(int(batch["index"][i])) for i in present]
        good = [i for i in present if batch["valid"][i]]
        bad = [names[i] for i in present if not batch["valid"][i]]
        if not good:
            yield [], bad
            continue
        found = detector.features(batch["image"][good], batch["index"][good])
        verdicts = detector.judge(found)
        cosines, nearest = detector.nearest(found, neighbours)
        lines = []
        for i, row in enumerate(good):
            beside = [
                part
                for name, cosine in zip(nearest[i], cosines[i], strict=True)
                for part in (name, f"{cosine:.4f}")
            ]
            verdict = "ood" if verdicts.ood[i] else "in"
            score, rank = f"{verdicts.scores[i]:.6g}", f"{verdicts.ood_rank[i]:.2f}"
            lines.append([names[row], score, rank, verdict, *beside])
        yield lines, bad


def open_images(path: str) -> "Source":
    """A folder, one image or a source, as --images takes them.

    Raises:
      ValueError: none of these.
    """
    from ood_jax.data.files import open_file
    from ood_jax.data.sources import KINDS, open_source
    from ood_jax.data.union import singles
    from ood_jax.place import kind, place

    if not kind(place(path)) and singles(path)[0].partition(":")[0] in KINDS:
        return open_source(path)
    if kind(place(path)) == "folder":
        return open_source(f"folder:{path}")
    return open_file(place(path), path)


def _report(detector: "Detector", counts: Counts, out: "epath.Path") -> None:
    total = counts.inside + counts.ood
    print(
        f"{total:,} images: {counts.inside:,} in, {counts.ood:,} ood by {detector.name} >"
        f" {detector.threshold:.6g}, which keeps"
        f" {100 * detector.network.config.score.keep:g} % of"
        f" {len(detector.calibration):,} calibration images; written: {out}"
    )
    if counts.unreadable:
        print(f"cannot be read: {len(counts.unreadable):,}", file=sys.stderr)
        print("\n".join(f"  {command.said(one)}" for one in counts.unreadable), file=sys.stderr)


def _seen(detector: "Detector", workdir: str, source: "Source") -> int:
    """How many of these images the run was trained with."""
    from ood_jax import transductive
    from ood_jax.checkpoint import stages_in

    config = detector.network.config
    trained = transductive.sources_of([*stages_in(workdir).values(), config.to_dict()])
    scored = {"images": source}
    common = transductive.in_common(trained, scored, root=config.data.root, scored_root="")
    return common.counts.get("images", 0)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.predict", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the run")
    add("--images", help="folder, image or source")
    add("--scorer", help="a score of ood_jax.scorers; by default the first of the last scoring")
    add("--out", default="predictions.csv", metavar="FILE.csv")
    add("--neighbours", type=int, default=3, help="train images shown beside each")
    add("--step", type=int, help="of the checkpoint; the newest by default")
    add("--export", metavar="FILE", help="write the fitted detector as StableHLO")
    options = parser.parse_args(argv)
    return command.answered(lambda: _run(options), stopped="nothing was written")


def _run(options: argparse.Namespace) -> None:
    if options.images is None and options.export is None:
        raise ValueError("give --images=PATH to judge images, or --export=FILE")
    if options.neighbours < 0:
        raise ValueError(f"--neighbours={options.neighbours}: use 0 or more")
    if not options.out or options.export == "":
        raise ValueError("--out= or --export= names no file: write --out=FILE.csv")
    source = None if options.images is None else open_images(options.images)
    from ood_jax.detector import load
    from ood_jax.place import place

    detector = load(options.workdir, scorer=options.scorer, step=options.step)
    if options.export is not None:
        from ood_jax.export import export

        size = export(detector, place(options.export))
        print(f"written: {options.export}, {size:,} bytes")
    if source is not None:
        out = place(options.out)
        _report(detector, predict(detector, source, out, options.neighbours), out)
        if seen := _seen(detector, options.workdir, source):
            print(f"{seen:,} of these images were among those of training (transductive)")


if __name__ == "__main__":
    cpu.prepare("ood_jax.predict")
    sys.exit(main(sys.argv[1:]))
