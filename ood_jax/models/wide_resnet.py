"""Wide ResNets for CIFAR (Zagoruyko & Komodakis 2016), without dropout, as OpenOOD has them.

Depth 6n + 4 and widen factor k: model.width = 16 k channels in the first stage.
"""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.models.convolution import HE_FAN_OUT, conv, norm_layer, sixth
from ood_jax.models.stages import sow_stage
from ood_jax.types import Array

STEM = 16  # channels, whatever the widen factor


def trunk(model: ConfigDict) -> nn.Module:
    """The trunk that `config.model` describes: images [B, H, W, 3] -> float32 [B, 4 x width].

    Raises:
      ValueError: a depth other than 6n + 4, a width that is no multiple of 16, another stem than
        cifar, an unknown norm.
    """
    blocks = sixth(model)
    if model.width % STEM:
        raise ValueError(
            f"model.width {model.width} of a wide_resnet: use {STEM} x the widen factor, such as"
            f" {STEM * (model.width // STEM + 1)}"
        )
    return WideResNet(blocks, model.width, model.stride, model.norm, jnp.dtype(model.dtype))


class WideResNet(nn.Module):
    """Images -> stem -> three stages of blocks -> norm, ReLU, mean over pixels, float32 [B, D].

    blocks: in each stage. width: channels of the first stage; each has twice those of the one
    before. stride: of the stem. Stages of Outputs: the stem's output, each stage's, and what the
    mean is of (OpenOOD's feature list without its first entry).
    """

    blocks: int
    width: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = images.astype(self.dtype)
        x = conv(STEM, 3, self.stride, self.dtype, "conv_1", HE_FAN_OUT)(x)
        sow_stage(self, x)
        for stage in range(3):
            for i in range(self.blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage_{stage + 1}_block_{i}"
                channels = self.width * 2**stage
                x = WideBlock(channels, stride, self.norm, self.dtype, name=name)(x, train)
            sow_stage(self, x)
        x = nn.relu(norm_layer(self.norm, train, self.dtype)(name="norm")(x))
        sow_stage(self, x)
        return x.astype(jnp.float32).mean((1, 2))


class WideBlock(nn.Module):
    """Norm, ReLU, 3x3, twice, [B, H, W, C] -> [B, H/stride, W/stride, channels].

    Where the block changes shape its shortcut is a 1x1 convolution of the first ReLU's output;
    elsewhere it is the block's input.
    """

    channels: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = norm_layer(self.norm, train, self.dtype)
        y = nn.relu(norm(name="norm_1")(x))
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.stride, self.dtype, "shortcut_conv", HE_FAN_OUT)(y)
        y = conv(self.channels, 3, self.stride, self.dtype, "conv_1", HE_FAN_OUT)(y)
        y = nn.relu(norm(name="norm_2")(y))
        return x + conv(self.channels, 3, 1, self.dtype, "conv_2", HE_FAN_OUT)(y)
