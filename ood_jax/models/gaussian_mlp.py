"""The networks q(y|x) of CLUB: a Gaussian whose mean and log-variance are two MLPs of x."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ood_jax.models.heads import LinearLayer
from ood_jax.types import Array


class GaussianMLP(nn.Module):
    """x [B, D] -> mean [B, outputs] and log-variance [B, outputs], in (-1, 1) by a tanh.

    mean_hidden, log_variance_hidden: widths of the hidden layers, each followed by ReLU. Where x
    does not vary over the batch, both are finite and the same for all rows.
    """

    outputs: int
    mean_hidden: tuple[int, ...]
    log_variance_hidden: tuple[int, ...]
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, jax.Array]:
        mean = self._mlp("mean", self.mean_hidden, x)
        return mean, jnp.tanh(self._mlp("log_variance", self.log_variance_hidden, x))

    def _mlp(self, name: str, hidden: tuple[int, ...], x: Array) -> jax.Array:
        for i, width in enumerate((*hidden, self.outputs)):
            x = nn.relu(x) if i else x
            x = LinearLayer(width, self.dtype, name=f"{name}_{i}")(x)
        return jnp.asarray(x)


def near_gaussian(outputs: int, hidden: int = 512) -> GaussianMLP:
    """q of OAML's code for mined outliers (`CLUB`): one hidden layer of hidden / 2 in each MLP.

    Raises:
      ValueError: a layer would have no units.
    """
    return _checked(outputs, (hidden // 2,), hidden)


def far_gaussian(inputs: int, outputs: int, hidden: int = 512) -> GaussianMLP:
    """q of OAML's code for generated outliers (`DEEP_CLUB`), of x of width `inputs`.

    The mean's hidden layers are inputs / 2, inputs / 4 and hidden / 2 wide; the log-variance has
    one.

    Raises:
      ValueError: a layer would have no units.
    """
    return _checked(outputs, (inputs // 2, inputs // 4, hidden // 2), hidden)


def _checked(outputs: int, mean_hidden: tuple[int, ...], hidden: int) -> GaussianMLP:
    layers = (*mean_hidden, hidden // 2, outputs)
    if min(layers) < 1:
        raise ValueError(f"q with layers of {layers} units: each needs 1 or more")
    return GaussianMLP(outputs, mean_hidden, (hidden // 2,))
