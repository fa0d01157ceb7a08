"""Batch normalisation (Ioffe & Szegedy 2015) with the running statistics that PyTorch keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ood_jax.types import Array

MOMENTUM = 0.1  # of the new batch in the running statistics
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """x [..., C] normalised over all but its last axis, then scaled and shifted.

    train: by the batch's mean and biased variance, of the global batch under jit; else by the
    running ones. The running variance follows the batch's unbiased one, as PyTorch's does (Flax's
    follows the biased one). Statistics are float32 at least, whatever `dtype` activations have.
    """

    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean: Array = running_mean.value
        var: Array = running_var.value
        if self.train:
            axes = tuple(range(x.ndim - 1))
            mean = exact.mean(axes)
            var = jnp.square(exact - mean).mean(axes)
            count = x.size // x.shape[-1]
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = _moved(running_mean.value, mean)
                running_var.value = _moved(running_var.value, unbiased)
        y = (exact - mean) * (scale * jax.lax.rsqrt(var + EPSILON)) + bias
        return y.astype(self.dtype)


def _moved(running: jax.Array, batch: Array) -> jax.Array:
    return ((1 - MOMENTUM) * running + MOMENTUM * batch).astype(running.dtype)
