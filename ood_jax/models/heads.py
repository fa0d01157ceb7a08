"""Heads: features -> projections -> logits over K outputs, or either of the features."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.models.batch_norm import BatchNorm
from ood_jax.types import Array, LastLayer, Outputs, PyTree

NORMALISED = ("dino",)  # heads whose projections have norm 1
CLASSIFIERS = ("linear", "projection")  # heads whose logits are of classes
HEADS = ("dino", "projection", "linear", "none")
SIZES = {  # head -> its keys that must be at least this
    "dino": {"layers": 1, "hidden": 1, "bottleneck": 1, "outputs": 1},
    "projection": {"layers": 1, "hidden": 0, "bottleneck": 1, "outputs": 0, "second_outputs": 0},
    "linear": {"outputs": 1, "second_outputs": 0},
    "none": {},
}


def head(config: ConfigDict, dtype: str) -> nn.Module | None:
    """The head that `config.head` describes; None = none.

    Raises:
      ValueError: unknown name, or sizes below 1.
    """
    if config.name not in HEADS:
        raise ValueError(f"head.name {config.name!r}: use {', '.join(HEADS)}")
    for key, least in SIZES[config.name].items():
        if config[key] < least:
            raise ValueError(f"head.{key} = {config[key]}: use {least} or more")
    if config.name == "none":
        return None
    kind = jnp.dtype(dtype)
    if config.name == "linear":
        return LinearHead(config.outputs, config.second_outputs, dtype=kind)
    if config.name == "projection":
        keys = ("layers", "hidden", "bottleneck", "batch_norm", "outputs", "second_outputs")
        return ProjectionHead(**{key: config[key] for key in keys}, dtype=kind)
    return DinoHead(
        layers=config.layers,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        outputs=config.outputs,
        train_gain=config.train_gain,
        dtype=kind,
    )


def last_layer(config: ConfigDict) -> Callable[[PyTree], LastLayer] | None:
    """params -> the layer that the logits of the head that `config` describes come from."""
    if config.name == "projection":
        return _linear_layer if config.outputs else None
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
    """One or two classifiers of features [B, D].

    logits float32 [B, outputs] and, where these are not 0, second_logits [B, second_outputs].
    """

    outputs: int
    second_outputs: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Outputs:
        first = LinearLayer(self.outputs, self.dtype, name="linear")(x)
        if not self.second_outputs:
            return Outputs(x, logits=first)
        second = LinearLayer(self.second_outputs, self.dtype, name="second")(x)
        return Outputs(x, logits=first, second_logits=second)


class ProjectionHead(nn.Module):
    """SimCLR's MLP (Chen et al. 2020) and, beside it on the same features, linear classifiers.

    features [B, D] -> projections float32 [B, bottleneck], not normalised; logits float32
    [B, outputs] and second_logits float32 [B, second_outputs], where these are not 0. Each of the
    first layers - 1 layers is hidden wide (0 = D) with BatchNorm, if asked for, and ReLU; a bias
    before BatchNorm would do nothing, so there is none.
    """

    layers: int
    hidden: int
    bottleneck: int
    batch_norm: bool
    outputs: int
    second_outputs: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Outputs:
        y = x
        for i in range(self.layers - 1):
            width = self.hidden or x.shape[-1]
            y = LinearLayer(width, self.dtype, not self.batch_norm, name=f"mlp_{i}")(y)
            if self.batch_norm:
                y = BatchNorm(train, self.dtype, name=f"norm_{i}")(y)
            y = nn.relu(y)
        y = LinearLayer(self.bottleneck, self.dtype, name=f"mlp_{self.layers - 1}")(y)
        names = {"linear": self.outputs, "second": self.second_outputs}
        linear = {
            name: LinearLayer(count, self.dtype, name=name)(x)
            for name, count in names.items()
            if count
        }
        return Outputs(x, y, linear.get("linear"), linear.get("second"))


class LinearLayer(nn.Module):
    """x [B, D] @ kernel + bias -> float32 [B, K], summed in float32 whatever `dtype`."""

    outputs: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", uniform, (x.shape[-1], self.outputs))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.outputs,))


class DinoHead(nn.Module):
    """DINO's head (Caron et al. 2021): MLP, L2 normalisation, weight-normalised linear layer.

    features [B, D] -> projections float32 [B, bottleneck], logits float32 [B, outputs].
    """

    layers: int
    hidden: int
    bottleneck: int
    outputs: int
    train_gain: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Outputs:
        x = features.astype(self.dtype)
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
        return Outputs(features, projections, last_layer(projections))


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
