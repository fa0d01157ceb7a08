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
      ValueError: labels missing, or not one a row; a class with fewer than `least` rows, which is
        what `what` needs, or whose rows are all the same.
    """
    found: list[tuple[int, np.ndarray]] = [(-1, np.arange(len(rows)))]
    if class_wise:
        classes = labelled(Features(rows, labels=labels), "mining class by class")
        found = list(zip(classes.classes.tolist(), classes.rows, strict=True))
    for label, members in found:
        name = f"class {label}" if class_wise else "the set"
        if len(members) < least:
            raise ValueError(
                f"{what} of a bank of {len(members)} embeddings ({name}): use {len(members)} or"
                " fewer, or more images"
            )
        if len(members) > 1 and not (rows[members] != rows[members[0]]).any():
            raise ValueError(
                f"all {len(members)} embeddings of {name} are the same (zero variance): there is"
                " no boundary; has the teacher collapsed?"
            )
    return found
