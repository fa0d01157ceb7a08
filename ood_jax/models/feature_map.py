"""The trainable map of a teacher's features to a student's width (OAML's `DT`)."""

import flax.linen as nn
import jax.numpy as jnp

from ood_jax.models.batch_norm import BatchNorm
from ood_jax.models.heads import LinearLayer
from ood_jax.types import Array


class FeatureMap(nn.Module):
    """Features [B, E] -> BatchNorm, linear layer, ReLU, BatchNorm -> float32 [B, outputs].

    The paper says a stack of MLP layers; this is the released code's. Features that do not vary
    over the batch become the norm's bias, not NaN.
    """

    outputs: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Array:
        x = BatchNorm(train, self.dtype, name="norm_0")(jnp.asarray(features))
        x = nn.relu(LinearLayer(self.outputs, self.dtype, name="mlp_0")(x))
        return BatchNorm(train, self.dtype, name="norm_1")(x)
