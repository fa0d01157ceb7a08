"""DenseNet-BC for CIFAR (Huang et al. 2017), without dropout, as OpenOOD has it (DenseNet3).

Depth 6n + 4; model.width is the growth rate.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.models.convolution import GROUPS, HE_FAN_OUT, conv, norm_layer, sixth
from ood_jax.models.stages import sow_stage
from ood_jax.types import Array

BLOCKS = 3
REDUCTION = 0.5  # theta: share of the channels that a transition keeps


def trunk(model: ConfigDict) -> nn.Module:
    """The trunk that `config.model` describes: images [B, H, W, 3] -> float32 [B, D].

    Raises:
      ValueError: a depth other than 6n + 4, another stem than cifar, an unknown norm, GroupNorm
        with a growth rate that gives channels which do not divide into its groups.
    """
    layers = sixth(model)
    if model.norm == "group":
        _check_groups(layers, model.width)
    dtype = jnp.dtype(model.dtype)
    return DenseNet(layers, model.width, model.stride, model.norm, dtype, REDUCTION)


def _check_groups(layers: int, growth: int) -> None:
    channels, normalised = 2 * growth, [4 * growth]
    for _ in range(BLOCKS):
        normalised += [channels + i * growth for i in range(layers + 1)]
        channels = math.floor(normalised[-1] * REDUCTION)
    if odd := [count for count in normalised if count % GROUPS]:
        raise ValueError(
            f"model.width {growth} of a densenet: GroupNorm needs multiples of {GROUPS} channels,"
            f" and one layer would have {odd[0]}; use a multiple of 32, or model.norm batch"
        )


class DenseNet(nn.Module):
    """Images -> stem -> dense blocks, transitions between -> norm, ReLU, mean, float32 [B, D].

    layers: in each of three blocks. growth: channels that each layer adds; the stem has twice as
    many. stride: of the stem. reduction: share of the channels that a transition keeps, rounded
    down.
    Stages of Outputs: the stem's output, each block's with its transition, and what the mean is of
    (OpenOOD's feature list without its first entry).
    """

    layers: int
    growth: int
    stride: int
    norm: str
    dtype: jnp.dtype
    reduction: float = REDUCTION

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = images.astype(self.dtype)
        x = conv(2 * self.growth, 3, self.stride, self.dtype, "conv_1", HE_FAN_OUT)(x)
        sow_stage(self, x)
        for block in range(1, BLOCKS + 1):
            for i in range(self.layers):
                name = f"block_{block}_layer_{i}"
                x = DenseLayer(self.growth, self.norm, self.dtype, name=name)(x, train)
            if block < BLOCKS:
                channels = math.floor(x.shape[-1] * self.reduction)
                name = f"transition_{block}"
                x = Transition(channels, self.norm, self.dtype, name=name)(x, train)
            sow_stage(self, x)
        x = nn.relu(norm_layer(self.norm, train, self.dtype)(name="norm")(x))
        sow_stage(self, x)
        return x.astype(jnp.float32).mean((1, 2))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 to 4 x growth, norm, ReLU, 3x3: [B, H, W, C] -> [B, H, W, C + growth]."""

    growth: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = norm_layer(self.norm, train, self.dtype)
        y = nn.relu(norm(name="norm_1")(x))
        y = conv(4 * self.growth, 1, 1, self.dtype, "conv_1", HE_FAN_OUT)(y)
        y = nn.relu(norm(name="norm_2")(y))
        y = conv(self.growth, 3, 1, self.dtype, "conv_2", HE_FAN_OUT)(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1, mean over 2x2: [B, H, W, C] -> [B, H // 2, W // 2, channels]."""

    channels: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if min(x.shape[1:3]) < 2:
            raise ValueError(
                f"a densenet halves its images twice, and {x.shape[1]} x {x.shape[2]} pixels are"
                f" left at {self.name}: use larger images or a smaller model.stride"
            )
        x = nn.relu(norm_layer(self.norm, train, self.dtype)(name="norm")(x))
        x = conv(self.channels, 1, 1, self.dtype, "conv", HE_FAN_OUT)(x)
        return nn.avg_pool(x, (2, 2), (2, 2))
