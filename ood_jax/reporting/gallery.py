"""The images most wrongly accepted and rejected, beside their nearest train images."""

from collections.abc import Sequence

import numpy as np

from ood_jax.reporting.blocks import Block, LeftOut, Mistake, Mistakes, clean
from ood_jax.reporting.variants import Variant
from ood_jax.reporting.workdirs import TEST, Run

SHOWN = 12  # mistakes of a set
KEYS = ("images", "rows", "scores", "neighbours", "cosines")


def gallery(variants: Sequence[Variant]) -> list[Block]:
    """Of each variant's first run: mistakes in the test set, then in every OOD set."""
    out: list[Block] = []
    for number, run in enumerate([variant.runs[0] for variant in variants], 1):
        if "examples" in run.missing:
            out.append(LeftOut(clean(f"{run.label}: {run.missing['examples']}.")))
            continue
        blocks: list[Block] = []
        for index, name in enumerate((TEST, *run.results["sets"])):
            if items := _mistakes(run, name):
                verb = "rejected" if name == TEST else "accepted"
                where = "in-distribution test" if name == TEST else name
                title = clean(f"{run.label}, {where}: most wrongly {verb}")
                blocks.append(Mistakes(f"mistakes-{number}-{index}", title, items))
        out += blocks or [LeftOut(clean(f"{run.label}: examples.npz has no images."))]
    return out


def _mistakes(run: Run, name: str) -> tuple[Mistake, ...]:
    found = [run.examples.get(f"{name}/{key}") for key in KEYS]
    if any(array is None for array in found) or not _match(found):  # type: ignore[arg-type]
        return ()
    images, rows, scores, neighbours, cosines = found
    return tuple(
        Mistake(
            images[i],  # type: ignore[index]
            *_words(run, name, int(rows[i]), float(scores[i])),  # type: ignore[index]
            tuple(zip(neighbours[i], map(float, cosines[i]), strict=True)),  # type: ignore[index]
        )
        for i in range(min(SHOWN, len(images)))  # type: ignore[arg-type]
    )


def _match(found: Sequence[np.ndarray]) -> bool:
    """Arrays of the shapes that examples.npz has: a damaged file shows nothing."""
    images, rows, scores, neighbours, cosines = found
    return (
        images.ndim == 4
        and images.shape[1] > 0
        and images.shape[-1] == 3
        and neighbours.shape == (*cosines.shape, *images.shape[1:])
        and rows.shape == scores.shape == cosines.shape[:1] == images.shape[:1]
        and images.dtype == neighbours.dtype == np.uint8
    )


def _words(run: Run, name: str, row: int, score: float) -> tuple[str, str]:
    """(the image's name, its score and OOD rank)."""
    facts = f"score\u00a0{score:.4g}".replace("-", "−")
    scores = run.scores.get(name)
    if scores is None or row not in scores.rows:
        return f"image {row}", facts
    place = int(np.flatnonzero(scores.rows == row)[0])
    image = clean(scores.images[place].as_py() or str(row))
    named = f"image {row}" if image == str(row) else image
    return named, f"{facts}, OOD\u00a0rank\u00a0{scores.ranks[place]:.1f}\u00a0%"
