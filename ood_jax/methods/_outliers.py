"""What stages that make outliers share: none has views or a network of images."""

import jax

from ood_jax.progress import Progress
from ood_jax.types import Array, Batch, PyTree


def counted(total: int, label: str) -> Progress:
    """A bar over `total` outliers."""
    return Progress(total, unit="outliers", label=label, enabled=jax.process_index() == 0)


def no_views(batch: Batch, key: Array) -> Batch:
    """The host batch as it is."""
    return batch


def no_network(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
    """No parameters."""
    return {}, {}
