"""Image operations on one float32 image [H, W, 3] in [0, 1]; pure, for jit and vmap.

Semantics are torchvision's on float tensors. Strengths, boxes and radii may be traced; sizes are
static. Colour operations clamp to [0, 1]; resizing does not (bicubic overshoots).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ood_jax.types import Array

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision
SOLARIZE_THRESHOLD = 128 / 255
METHODS = ("bicubic", "bilinear")


def crop_resize(
    image: Array,
    box: Array | Sequence[float],
    size: int,
    *,
    method: str = "bicubic",
    antialias: bool = True,
) -> jax.Array:
    """The crop `box` of an image [H, W, C], resized to float32 [size, size, C]; not clamped.

    Two small matrices, masked to the crop: no pixel outside it is read (METHODS.md, section 8).
    box: (top, left, height, width) in px, inside the image; may be traced.
    With antialias the kernel widens when shrinking and bicubic has a = -0.5 (PIL, torch
    antialias=True); without, bicubic has a = -0.75 and taps are clamped to the crop (torch).

    Raises:
      ValueError: `method` is neither bicubic nor bilinear, or size < 1.
    """
    if method not in METHODS:
        raise ValueError(f"resize method {method!r}: use one of {', '.join(METHODS)}")
    if size < 1:
        raise ValueError(f"size {size} px: must be at least 1")
    top, left, height, width = (jnp.asarray(v, jnp.float32) for v in box)
    matrix = _antialiased if antialias else _clamped_taps
    rows = matrix(image.shape[0], size, top, height, method)
    columns = matrix(image.shape[1], size, left, width, method)
    return _apply(rows, columns, image)


def resize(
    image: Array, size: int, *, method: str = "bicubic", antialias: bool = True
) -> jax.Array:
    """The whole image [H, W, C] resized to float32 [size, size, C]; see `crop_resize`."""
    box = (0, 0, image.shape[0], image.shape[1])
    return crop_resize(image, box, size, method=method, antialias=antialias)


def _apply(rows: Array, columns: Array, image: Array) -> jax.Array:
    """rows [I, H] · image [H, W, C] · columns [J, W]^T -> [I, J, C], float32 on every device.

    Columns first, on [H, C, W]: both products are then plain matrix products over the last or first
    axis, twice as fast on a CPU as with C last.
    """
    exact = lax.Precision.HIGHEST
    planes = jnp.swapaxes(jnp.asarray(image, jnp.float32), 1, 2)
    half = jnp.einsum("hcw,wj->hcj", planes, columns.T, precision=exact)
    return jnp.swapaxes(jnp.einsum("ih,hcj->icj", rows, half, precision=exact), 1, 2)


def _antialiased(length: int, size: int, start: Array, extent: Array, method: str) -> jax.Array:
    """Weights [size, length]: row i makes output pixel i from [start, start + extent)."""
    step = extent / size
    centre = start + (jnp.arange(size) + 0.5)[:, None] * step
    pixel = jnp.arange(length)[None, :] + 0.5
    distance = jnp.abs(pixel - centre) / jnp.maximum(step, 1.0)
    inside = (pixel > start) & (pixel < start + extent)
    weight = jnp.where(inside, _kernel(distance, method, -0.5), 0.0)
    return weight / jnp.sum(weight, axis=1, keepdims=True)


def _clamped_taps(length: int, size: int, start: Array, extent: Array, method: str) -> jax.Array:
    """Weights [size, length] without antialiasing: taps beyond the crop read its edge pixel."""
    position = (jnp.arange(size) + 0.5) * (extent / size) - 0.5
    first = jnp.floor(position)
    taps = jnp.arange(-1, 3)[None, :]
    weight = _kernel(jnp.abs(position[:, None] - first[:, None] - taps), method, -0.75)
    pixel = start + jnp.clip(first[:, None] + taps, 0, extent - 1)
    hit = pixel[:, :, None] == jnp.arange(length)[None, None, :]
    return jnp.sum(weight[:, :, None] * hit, axis=1)


def _kernel(distance: Array, method: str, a: float) -> jax.Array:
    """Interpolation weight at distance >= 0: triangle, or Keys' cubic with parameter a."""
    d = distance
    if method == "bilinear":
        return jnp.maximum(1.0 - d, 0.0)
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((d - 5.0) * d + 8.0) * d * a - 4.0 * a
    return jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))


def horizontal_flip(image: Array) -> jax.Array:
    """The image [H, W, C], left and right exchanged."""
    return jnp.flip(image, axis=1)


def grey(image: Array) -> jax.Array:
    """Luma (ITU-R 601) of an image [H, W, 3], as [H, W, 1]."""
    red, green, blue = _channels(image)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _channels(image: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    image = jnp.asarray(image)
    return image[..., 0:1], image[..., 1:2], image[..., 2:3]


def adjust_brightness(image: Array, factor: Array | float) -> jax.Array:
    """Image [H, W, 3] times factor >= 0, clamped."""
    return jnp.clip(image * factor, 0.0, 1.0)


def adjust_contrast(image: Array, factor: Array | float) -> jax.Array:
    """Blend of an image [H, W, 3] with the mean of its greyscale; factor >= 0, 1 = unchanged."""
    # Rows first: the sum runs over contiguous memory, several times faster on a CPU.
    luma = jnp.mean(jnp.sum(image, axis=0) @ jnp.asarray(LUMA)) / image.shape[0]
    return _blend(image, luma, factor)


def adjust_saturation(image: Array, factor: Array | float) -> jax.Array:
    """Blend of an image [H, W, 3] with its greyscale; factor >= 0, 1 = unchanged."""
    return _blend(image, grey(image), factor)


def _blend(image: Array, other: Array, factor: Array | float) -> jax.Array:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def adjust_hue(image: Array, turns: Array | float) -> jax.Array:
    """Hue of an image [H, W, 3] in HSV moved by `turns` (-0.5 to 0.5; 1 = the whole circle)."""
    red, green, blue = _channels(image)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    sextant = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, (blue - red) * scale + 2.0, (red - green) * scale + 4.0),
    )
    # One channel of HSV -> RGB without branches: V - C max(0, min(k, 4 - k, 1)), k = n + 6 h mod 6.
    k = jnp.asarray((5.0, 3.0, 1.0), jnp.float32) + (sextant + 6.0 * turns)
    k = k - 6.0 * jnp.floor(k / 6.0)
    return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)


def gaussian_blur(image: Array, sigma: Array | float) -> jax.Array:
    """A true Gaussian of `sigma` px (>= 0, traced; 0 = unchanged) over an image [H, W, C].

    Pixels beyond the edge repeat the edge. One dense matrix an axis: faster than taps on every
    device at the sizes of views, and exact for any sigma that is small against the image.
    """
    rows = _blur_matrix(image.shape[0], sigma)
    columns = rows if image.shape[1] == image.shape[0] else _blur_matrix(image.shape[1], sigma)
    return _apply(rows, columns, image)


def _blur_matrix(length: int, sigma: Array | float) -> jax.Array:
    """[length, length]; the tails beyond either edge are summed onto the edge pixel."""
    pixel = np.arange(length)
    precision = 0.5 / jnp.square(jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-4))
    tap = jnp.exp(-precision * np.square(np.arange(2 * length), dtype=np.float32))
    tail = lax.cumsum(tap, reverse=True)[:length]
    offset = np.square(pixel[:, None] - pixel[None, :]).astype(np.float32)
    matrix = jnp.exp(-precision * offset)
    matrix = jnp.where(pixel[None, :] == 0, tail[:, None], matrix)
    matrix = jnp.where(pixel[None, :] == length - 1, tail[::-1][:, None], matrix)
    return matrix / (2.0 * tail[0] - tap[0]) if length > 1 else jnp.ones((1, 1))


def solarize(image: Array, threshold: float = SOLARIZE_THRESHOLD) -> jax.Array:
    """1 - x where x >= threshold (inclusive, as PIL at 128 of 255), of an image [H, W, C]."""
    return jnp.where(image >= jnp.float32(threshold), 1.0 - image, image)


def normalise(image: Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std by channel, of an image [..., 3]."""
    return (jnp.asarray(image) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
