"""ResNets (He et al. 2016): basic and bottleneck blocks behind a CIFAR or an ImageNet stem.

BatchNorm is over the global batch. GroupNorm is for self-distillation: a teacher in evaluation mode
then needs no statistics, which would lag behind its own slow parameters.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.models.convolution import GROUPS, check_norm, conv, norm_layer
from ood_jax.models.stages import sow_stage
from ood_jax.types import Array

STEMS = ("cifar", "imagenet")
BLOCKS = {  # depth -> blocks of each stage, kind of block
    10: ((1, 1, 1, 1), "basic"),
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}


def trunk(model: ConfigDict) -> nn.Module:
    """The trunk that `config.model` describes: images [B, H, W, 3] -> float32 [B, D].

    D is 8 x width with basic blocks, 32 x width with bottlenecks.

    Raises:
      ValueError: a depth without a recipe, a width below 1, an unknown stem or norm.
    """
    if model.depth not in BLOCKS:
        raise ValueError(
            f"model.depth {model.depth} of a resnet: use {', '.join(map(str, BLOCKS))}"
        )
    if model.width < 1:
        raise ValueError(f"model.width {model.width}: use 1 or more (64 is standard)")
    if model.stem not in STEMS:
        raise ValueError(f"model.stem {model.stem!r}: use {' or '.join(STEMS)}")
    check_norm(model.norm)
    if model.norm == "group" and model.width % GROUPS:
        raise ValueError(f"model.width {model.width}: GroupNorm needs a multiple of {GROUPS}")
    blocks, kind = BLOCKS[model.depth]
    dtype = jnp.dtype(model.dtype)
    return ResNet(blocks, model.width, model.stride, model.norm, dtype, kind, model.stem)


class ResNet(nn.Module):
    """Images -> stem -> stages of blocks -> mean over pixels, float32 [B, D].

    blocks: how many in each stage. width: channels of the stem and of the first stage's inner
    convolutions; each stage has twice those of the one before. stride: of the CIFAR stem.
    Stages of Outputs: the stem's output and each stage's, before the mean (OpenOOD's feature list
    has the last one after it).
    """

    blocks: tuple[int, ...]
    width: int
    stride: int
    norm: str
    dtype: jnp.dtype
    kind: str = "basic"
    stem: str = "cifar"

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[self.kind]
        x = images.astype(self.dtype)
        if self.stem == "cifar":
            x = conv(self.width, 3, self.stride, self.dtype, "conv_1")(x)
        else:
            x = conv(self.width, 7, 2, self.dtype, "conv_1")(x)
        x = nn.relu(norm_layer(self.norm, train, self.dtype)(name="norm_1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        sow_stage(self, x)
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage_{stage + 1}_block_{i}"
                channels = self.width * 2**stage
                x = block(channels, stride, self.norm, self.dtype, name=name)(x, train)
            sow_stage(self, x)
        return x.astype(jnp.float32).mean((1, 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [B, H, W, C] -> [B, H/stride, W/stride, channels]."""

    channels: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = norm_layer(self.norm, train, self.dtype)
        y = conv(self.channels, 3, self.stride, self.dtype, "conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = norm(name="norm_2")(conv(self.channels, 3, 1, self.dtype, "conv_2")(y))
        return nn.relu(_shortcut(x, y.shape[-1], self.stride, self.dtype, norm) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, [B, H, W, C] -> [B, H/stride, W/stride, 4 x channels].

    The 3x3 has the stride, as in torchvision and timm; the paper's first 1x1 has it.
    """

    channels: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = norm_layer(self.norm, train, self.dtype)
        y = conv(self.channels, 1, 1, self.dtype, "conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = conv(self.channels, 3, self.stride, self.dtype, "conv_2")(y)
        y = nn.relu(norm(name="norm_2")(y))
        y = norm(name="norm_3")(conv(4 * self.channels, 1, 1, self.dtype, "conv_3")(y))
        return nn.relu(_shortcut(x, y.shape[-1], self.stride, self.dtype, norm) + y)


def _shortcut(
    x: Array, channels: int, stride: int, dtype: jnp.dtype, norm: Callable[..., nn.Module]
) -> Array:
    """x itself, or its 1x1 projection where the block changes shape; within a block's scope."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    return norm(name="shortcut_norm")(conv(channels, 1, stride, dtype, "shortcut_conv")(x))
