"""Embeddings that outliers are made from: checked, and parted into the banks of their classes."""

import numpy as np

from ood_jax.scorers.cosine import check_features, squared_norms
from ood_jax.scorers.rows import labelled
from ood_jax.types import Array, Features


def check_embeddings(embeddings: Array) -> np.ndarray:
    """Embeddings as float32 [N, D] on the host.

    Raises:
      ValueError: not [N, D], not finite, or some of norm 0.
    """
    rows = check_features(embeddings, "embedding")
    zero = np.flatnonzero(squared_norms(rows) == 0)
    if len(zero):
        raise ValueError(
            f"{len(zero)} of {len(rows)} embeddings have norm 0, the first in row {zero[0]}:"
            " they have no direction; has the teacher collapsed?"
        )
    return rows


def banks(
    rows: np.ndarray, labels: Array | None, *, class_wise: bool, least: int, what: str
) -> list[tuple[int, np.ndarray]]:
    """(label, rows int64 [n]) of each class, in their order; (-1, all rows) unless class_wise.

    Raises:
      ValueError: as `parted`; a bank whose rows are all the same.
    """
    found = parted(len(rows), labels, class_wise=class_wise, least=least, what=what)
    for label, members in found:
        if len(members) > 1 and not (rows[members] != rows[members[0]]).any():
            raise ValueError(
                f"all {len(members)} embeddings of {_named(label)} are the same (zero variance):"
                " there is no boundary; has the teacher collapsed?"
            )
    return found


def parted(
    count: int, labels: Array | None, *, class_wise: bool, least: int, what: str
) -> list[tuple[int, np.ndarray]]:
    """`banks` of `count` embeddings that need not be there yet.

    Raises:
      ValueError: labels missing, or not one a row; a class with fewer than `least` rows, which is
        what `what` needs.
    """
    found: list[tuple[int, np.ndarray]] = [(-1, np.arange(count))]
    if class_wise:
        classes = labelled(Features(np.empty((count, 0)), labels=labels), "mining class by class")
        found = list(zip(classes.classes.tolist(), classes.rows, strict=True))
    for label, members in found:
        if len(members) < least:
            raise ValueError(
                f"{what} of a bank of {len(members)} embeddings ({_named(label)}): use"
                f" {len(members)} or fewer, or more images"
            )
    return found


def _named(label: int) -> str:
    return "the set" if label < 0 else f"class {label}"
