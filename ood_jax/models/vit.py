"""Vision transformer (Dosovitskiy et al. 2021) as DINO runs it: pre-norm, CLS feature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ood_jax.models.stages import sow_stage
from ood_jax.types import Array

LAYER_NORM_EPS = 1e-6
_INIT = nn.initializers.normal(0.02)


def trunk(model: ConfigDict) -> nn.Module:
    """The trunk that `config.model` describes: images [B, H, W, 3] -> float32 [B, width].

    Raises:
      ValueError: sizes that do not fit together.
    """
    if model.image_size % model.patch:
        raise ValueError(
            f"model.image_size {model.image_size} is no multiple of model.patch {model.patch}"
        )
    if model.width % model.heads:
        raise ValueError(f"model.width {model.width} is no multiple of model.heads {model.heads}")
    if not 0 <= model.drop_path < 1:
        raise ValueError(f"model.drop_path {model.drop_path}: use a probability below 1")
    if model.layer_scale < 0:
        raise ValueError(f"model.layer_scale {model.layer_scale}: use 0 (none) or more")
    return ViT(
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        patch=model.patch,
        grid=model.image_size // model.patch,
        drop_path=model.drop_path,
        dtype=jnp.dtype(model.dtype),
        layer_scale=model.layer_scale,
    )


class ViT(nn.Module):
    """Images [B, H, W, 3] -> tokens -> the CLS token after the last norm, float32 [B, width].

    layer_scale: what LayerScale begins with (Touvron et al. 2021; DINOv2 has it), 0 = none.
    Stages of Outputs: the tokens [B, 1 + n, width] after each block, CLS first.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    drop_path: float
    dtype: jnp.dtype
    layer_scale: float = 0.0

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        rows, columns = (s // self.patch for s in images.shape[1:3])
        if min(rows, columns) < 1:
            raise ValueError(f"images of {images.shape[1:3]} px hold no {self.patch}-px patch")
        tokens = nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            name="patch",
        )(_patches(images.astype(self.dtype), self.patch))
        position = self.param("position", _INIT, (1, 1 + self.grid**2, self.width))
        cls = self.param("cls", _INIT, (1, 1, self.width)).astype(self.dtype)
        first = jnp.broadcast_to(cls, (images.shape[0], 1, self.width))
        x: Array = jnp.concatenate([first, tokens], axis=1)
        x = x + interpolate_position(position, rows, columns).astype(self.dtype)
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = Block(self.heads, rate, self.dtype, self.layer_scale, name=f"block_{i}")(x, train)
            sow_stage(self, x)
        return _norm(self.dtype, "norm")(x[:, 0]).astype(jnp.float32)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and in front of a residual; tokens [B, N, D]."""

    heads: int
    drop_path: float
    dtype: jnp.dtype
    layer_scale: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1]
        y = Attention(self.heads, self.dtype, name="attention")(_norm(self.dtype, "norm_1")(x))
        x = x + self._drop(self._scaled(y, "layer_scale_1"), train)
        y = _dense(4 * width, self.dtype, "mlp_1")(_norm(self.dtype, "norm_2")(x))
        y = _dense(width, self.dtype, "mlp_2")(nn.gelu(y, approximate=False))
        return x + self._drop(self._scaled(y, "layer_scale_2"), train)

    def _scaled(self, y: Array, name: str) -> Array:
        return LayerScale(self.layer_scale, name=name)(y) if self.layer_scale else y

    def _drop(self, y: Array, train: bool) -> Array:
        if not train or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        kept = jax.random.bernoulli(self.make_rng("noise"), keep, (len(y), 1, 1))
        return jnp.where(kept, y / jnp.asarray(keep, y.dtype), 0)


class LayerScale(nn.Module):
    """x [..., C] times a learned factor for each channel."""

    initial: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:])
        return x * scale.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, tokens [B, N, D] -> [B, N, D]."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, count, width = x.shape
        size = width // self.heads
        qkv = _dense(3 * width, self.dtype, "qkv")(x)
        q, k, v = qkv.reshape(batch, count, 3, self.heads, size).transpose(2, 0, 3, 1, 4)
        weights = jnp.matmul(q * size**-0.5, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        weights = nn.softmax(weights).astype(self.dtype)
        y = jnp.matmul(weights, v).transpose(0, 2, 1, 3).reshape(batch, count, width)
        return _dense(width, self.dtype, "out")(y)


def interpolate_position(position: Array, rows: int, columns: int) -> Array:
    """The position table [1, 1 + n, D] for a grid of rows x columns patches, CLS row first.

    As the official code of DINO and of DINOv2 does it: torch's bicubic (a = -0.75, no antialiasing)
    at the scale (rows + 0.1) / sqrt(n), so a grid of the table's own size is left alone.
    """
    grid = round((position.shape[1] - 1) ** 0.5)
    if (rows, columns) == (grid, grid):
        return position
    table = position[0, 1:].reshape(grid, grid, -1)
    table = jnp.einsum(
        "ri,cj,ijd->rcd",
        _bicubic_weights(grid, rows),
        _bicubic_weights(grid, columns),
        table,
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.concatenate([position[:, :1], table.reshape(1, rows * columns, -1)], axis=1)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    a = -0.75
    source = (np.arange(new) + 0.5) / ((new + 0.1) / old) - 0.5
    first = np.floor(source).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(source - (first + tap))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        np.add.at(
            weights,
            (np.arange(new), np.clip(first + tap, 0, old - 1)),
            np.where(t <= 1, near, far),
        )
    return weights.astype(np.float32)


def _patches(images: Array, patch: int) -> Array:
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images[:, : rows * patch, : columns * patch]
    x = x.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, patch * patch * channels)


def _dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_INIT, name=name)


def _norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, name=name)
