"""A published network as it is: nothing is trained, its features are scored.

The run has no steps; its one checkpoint, of step 0, holds the arrays of config.model.weights.
"""

from typing import Any

from ml_collections import ConfigDict

from ood_jax.types import Array, Batch, Method, Net

DEFAULTS: dict[str, Any] = {}


def build(config: ConfigDict, net: Net) -> Method:
    """The method without updates.

    Raises:
      ValueError: no weights are given.
    """
    if not config.model.weights:
        raise ValueError(
            "method frozen trains nothing: give the network's weights, as in"
            " --config.model.weights=FILE.pth (or .safetensors)"
        )
    return Method(updates=(), views=_no_views)


def _no_views(batch: Batch, key: Array) -> Batch:
    return batch
