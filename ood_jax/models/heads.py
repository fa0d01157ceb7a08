"""Heads: features -> projections -> logits over K outputs, or features -> logits."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.types import Array, LastLayer, PyTree

NORMALISED = ("dino",)  # heads whose projections have norm 1
HEADS = ("dino", "linear", "none")


def head(config: ConfigDict, dtype: str) -> nn.Module | None:
    """The head that `config.head` describes; None = none.

    Raises:
      ValueError: unknown name, or sizes below 1.
    """
    if config.name not in HEADS:
        raise ValueError(f"head.name {config.name!r}: use {', '.join(HEADS)}")
    if config.name == "none":
        return None
    mlp = ("layers", "hidden", "bottleneck") if config.name == "dino" else ()
    for key in (*mlp, "outputs"):
        if config[key] < 1:
            raise ValueError(f"head.{key} = {config[key]}: use 1 or more")
    if config.name == "linear":
        return LinearHead(outputs=config.outputs, dtype=jnp.dtype(dtype))
    return DinoHead(
        layers=config.layers,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        outputs=config.outputs,
        train_gain=config.train_gain,
        dtype=jnp.dtype(dtype),
    )


def last_layer(config: ConfigDict) -> Callable[[PyTree], LastLayer] | None:
    """params -> the layer that the logits of the head that `config` describes come from."""
    return {"linear": _linear_layer, "dino": _dino_layer}.get(config.name)


def _linear_layer(params: PyTree) -> LastLayer:
    layer = params["head"]["linear"]
    return LastLayer(layer["kernel"], layer["bias"], "features")


def _dino_layer(params: PyTree) -> LastLayer:
    layer = params["head"]["last"]
    kernel = l2_normalise(layer["direction"], axis=0)
    if "gain" in layer:
        kernel = kernel * layer["gain"]
    return LastLayer(kernel, jnp.zeros(kernel.shape[-1], kernel.dtype), "projections")


class LinearHead(nn.Module):
    """A classifier: features [B, D] -> (None, logits float32 [B, outputs])."""

    outputs: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> tuple[None, Array]:
        return None, LinearLayer(self.outputs, self.dtype, name="linear")(x)


class LinearLayer(nn.Module):
    """x [B, D] @ kernel + bias -> float32 [B, K], summed in float32 whatever `dtype`."""

    outputs: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", uniform, (x.shape[-1], self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias


class DinoHead(nn.Module):
    """DINO's head (Caron et al. 2021): MLP, L2 normalisation, weight-normalised linear layer.

    features [B, D] -> (projections float32 [B, bottleneck], logits float32 [B, outputs]).
    """

    layers: int
    hidden: int
    bottleneck: int
    outputs: int
    train_gain: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = x.astype(self.dtype)
        for i in range(self.layers):
            last = i == self.layers - 1
            x = nn.Dense(
                self.bottleneck if last else self.hidden,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02),
                name=f"mlp_{i}",
            )(x)
            if not last:
                x = nn.gelu(x, approximate=False)
        projections = l2_normalise(x.astype(jnp.float32))
        last_layer = WeightNormDense(self.outputs, self.train_gain, self.dtype, name="last")
        return projections, last_layer(projections)


class WeightNormDense(nn.Module):
    """x [B, P] -> float32 [B, K] with rows gain_k v_k / |v_k|; the gain stays 1 unless trained."""

    outputs: int
    train_gain: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.outputs)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        direction = self.param("direction", uniform, shape)
        weight = l2_normalise(direction, axis=0)
        if self.train_gain:
            weight = weight * self.param("gain", nn.initializers.ones, (self.outputs,))
        return jnp.matmul(
            x.astype(self.dtype), weight.astype(self.dtype), preferred_element_type=jnp.float32
        )


def l2_normalise(x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    """x / max(|x|, eps) along `axis`, with a finite gradient at 0."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, eps * eps))
