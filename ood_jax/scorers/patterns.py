"""What SHE stores of each class: the mean input of the last layer over images predicted rightly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from ood_jax.scorers.linear import Linear, linear, logits
from ood_jax.scorers.rows import labelled, summed
from ood_jax.types import Array, Features


class Patterns(struct.PyTreeNode):
    """patterns: float32 [K, D], what a class is compared with. missing: int32 [], how many of the K
    classes have no train image that is predicted rightly."""

    layer: Linear
    patterns: Array
    missing: Array


def stored_patterns(features: Features, mesh: Mesh) -> Patterns:
    """What SHE is fitted to. Labels are columns of the logits, or, where the logits have one column
    for each label there is, stand for them in ascending order.

    Raises:
      ValueError: labels that the logits have no column for.
    """
    layer, rows = linear(features, "she")
    found = labelled(features._replace(features=rows), "she")
    classes = layer.kernel.shape[1]
    if found.classes[-1] >= classes and len(found.classes) != classes:
        raise ValueError(
            f"label {found.classes[-1]} of the train set, but {classes} logits: the network was"
            " trained on other classes"
        )
    columns = found.classes if found.classes[-1] < classes else np.arange(classes)
    targets = np.full(len(rows), classes, np.int32)
    for column, index in zip(columns, found.rows, strict=True):
        targets[index] = column
    right, all_ = summed(_by_class, (rows, targets), mesh, layer)
    mean = rows.mean(0, dtype=np.float64)
    patterns = np.broadcast_to(mean, right[0].shape)
    for total, count in (all_, right):
        patterns = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], patterns)
    missing = np.asarray((right[1] == 0).sum(), np.int32)
    return Patterns(layer, patterns.astype(np.float32), missing)


def _by_class(counts: Array, rows: Array, targets: Array, layer: Linear) -> Any:
    """(sum of inputs [K, D], images [K]) of each class: of those predicted rightly, and of all."""
    found = logits(layer, rows)
    classes = found.shape[1]
    right = jnp.argmax(found, axis=1) == targets

    def sums(chosen: Array) -> tuple[Array, Array]:
        into = jnp.where(chosen & counts, targets, classes)
        one = jnp.ones(len(rows), rows.dtype)
        add = lambda x: jax.ops.segment_sum(x, into, classes + 1)[:classes]  # noqa: E731
        return add(rows), add(one)

    return sums(right), sums(jnp.ones_like(right))
