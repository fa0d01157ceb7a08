"""ResNet with basic blocks and the CIFAR stem (He et al. 2016).

BatchNorm is over the global batch. GroupNorm is for self-distillation: a teacher in evaluation mode
then needs no statistics, which would lag behind its own slow parameters.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.types import Array

NORMS = ("batch", "group")
GROUPS = 8
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def trunk(model: ConfigDict) -> nn.Module:
    """The trunk that `config.model` describes: images [B, H, W, 3] -> float32 [B, 8 x width].

    Raises:
      ValueError: a depth without a recipe, or a width below 1.
    """
    if model.depth not in BLOCKS:
        raise ValueError(
            f"model.depth {model.depth} of a resnet: use {', '.join(map(str, BLOCKS))}"
        )
    if model.width < 1:
        raise ValueError(f"model.width {model.width}: use 1 or more (64 is standard)")
    if model.norm not in NORMS:
        raise ValueError(f"model.norm {model.norm!r}: use {' or '.join(NORMS)}")
    if model.norm == "group" and model.width % GROUPS:
        raise ValueError(f"model.width {model.width}: GroupNorm needs a multiple of {GROUPS}")
    dtype = jnp.dtype(model.dtype)
    return ResNet(BLOCKS[model.depth], model.width, model.stride, model.norm, dtype)


class ResNet(nn.Module):
    """Images -> four stages of basic blocks -> mean over pixels, float32 [B, 8 x width]."""

    blocks: tuple[int, ...]
    width: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = _conv(self.width, 3, self.stride, self.dtype, "conv_1")(images.astype(self.dtype))
        x = nn.relu(_norm(self.norm, train, self.dtype)(name="norm_1")(x))
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage_{stage + 1}_block_{i}"
                channels = self.width * 2**stage
                x = BasicBlock(channels, stride, self.norm, self.dtype, name=name)(x, train)
        return x.astype(jnp.float32).mean((1, 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [B, H, W, C] -> [B, H/stride, W/stride, channels]."""

    channels: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = _norm(self.norm, train, self.dtype)
        y = _conv(self.channels, 3, self.stride, self.dtype, "conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = norm(name="norm_2")(_conv(self.channels, 3, 1, self.dtype, "conv_2")(y))
        if self.stride > 1 or x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


def _conv(channels: int, kernel: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    pad = kernel // 2
    return nn.Conv(
        channels,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def _norm(kind: str, train: bool, dtype: jnp.dtype) -> partial:
    if kind == "group":
        return partial(nn.GroupNorm, num_groups=GROUPS, epsilon=1e-5, dtype=dtype)
    # Flax's momentum .9 is PyTorch's .1.
    return partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )
