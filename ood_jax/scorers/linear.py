"""The network's last linear layer as the scores see it that are made of it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ood_jax.scorers.cosine import check_features
from ood_jax.scorers.rows import check_width
from ood_jax.types import Array, Features


class Linear(struct.PyTreeNode):
    """logits = inputs @ kernel + bias. kernel float32 [D, K]; bias float32 [K].

    reads: the field of Features that the inputs are; static, as jit cannot trace a text.
    """

    kernel: Array
    bias: Array
    reads: str = struct.field(pytree_node=False)


def linear(features: Features, name: str) -> tuple[Linear, np.ndarray]:
    """The last layer and its inputs on the train set, float32 [M, D].

    Raises:
      ValueError: the network has no last layer; the inputs are missing, broken or of another width.
    """
    last = features.last_layer
    if last is None:
        raise ValueError(f"{name} needs a linear last layer, which this network does not have")
    layer = Linear(
        np.asarray(last.kernel, np.float32), np.asarray(last.bias, np.float32), last.reads
    )
    return layer, check_features(inputs(layer, features), "train")


def inputs(layer: Linear, features: Features) -> Array:
    """What the layer reads of Features: [N, D].

    Raises:
      ValueError: it is not there, or of another width than the layer.
    """
    rows = getattr(features, layer.reads)
    if rows is None:
        raise ValueError(f"the last layer reads {layer.reads}, which are not there")
    check_width(rows, len(layer.kernel), "the last layer's inputs")
    return rows


def logits(layer: Linear, rows: Array) -> jax.Array:
    """[N, D] -> [N, K]."""
    return jnp.matmul(rows, layer.kernel, precision=lax.Precision.HIGHEST) + layer.bias
