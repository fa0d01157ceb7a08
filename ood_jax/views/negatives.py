"""Shifting transforms: what turns a crop into a negative view (Rafiee et al. 2022, section 4).

Each takes one square image [H, H, C] and a key, draws once, and keeps the shape. Rotations are
counter-clockwise, as np.rot90.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ood_jax.types import Array


def none(image: Array, key: Array) -> jax.Array:
    """The image as it is."""
    return jnp.asarray(image)


def rot(image: Array, key: Array) -> jax.Array:
    """Rotated by 90, 180 or 270 degrees, each as likely ("Rot.")."""
    return rotate_quarters(image, jax.random.randint(key, (), 1, 4))


def rot360(image: Array, key: Array) -> jax.Array:
    """Rotated by 0, 90, 180 or 270 degrees, each as likely ("Rot.360" as the paper has it)."""
    return rotate_quarters(image, jax.random.randint(key, (), 0, 4))


def rot_angle(image: Array, key: Array) -> jax.Array:
    """Rotated by an angle from U[0, 360) degrees ("Rot.360" as the released code has it)."""
    return rotate_angle(image, jax.random.uniform(key, (), maxval=360.0))


def perm4(image: Array, key: Array) -> jax.Array:
    """2 x 2 patches in random order ("Perm-4")."""
    return permute_patches(image, jax.random.permutation(key, 4), 2)


def perm16(image: Array, key: Array) -> jax.Array:
    """4 x 4 patches in random order ("Perm-16")."""
    return permute_patches(image, jax.random.permutation(key, 16), 4)


def pixperm(image: Array, key: Array) -> jax.Array:
    """All pixels in random order, the same for every channel ("Pix. Perm.")."""
    height, width, channels = image.shape
    order = jax.random.permutation(key, height * width)
    return jnp.asarray(image).reshape(-1, channels)[order].reshape(image.shape)


SHIFTS: dict[str, Callable[[Array, Array], Array]] = {
    "none": none,
    "rot": rot,
    "rot360": rot360,
    "rot_angle": rot_angle,
    "perm4": perm4,
    "perm16": perm16,
    "pixperm": pixperm,
}


def shift(name: str) -> Callable[[Array, Array], Array]:
    """The shifting transform (image [H, H, C], key) -> image called `name`.

    Raises:
      ValueError: no such transform.
    """
    if name not in SHIFTS:
        raise ValueError(f"shifting transform {name!r}: use one of {', '.join(SHIFTS)}")
    return SHIFTS[name]


def rotate_quarters(image: Array, quarters: Array) -> jax.Array:
    """A square image [H, H, C] rotated counter-clockwise by int32 `quarters` (0 to 3) times 90.

    A transpose, then flips: three selects under vmap instead of four rotations.

    Raises:
      ValueError: the image is not square.
    """
    _check_square(image)
    out = jnp.where(quarters % 2 == 1, jnp.swapaxes(image, 0, 1), image)
    # rot90 = transpose, rows reversed; rot180 = both reversed; rot270 = transpose, columns reversed
    out = jnp.where((quarters == 1) | (quarters == 2), jnp.flip(out, 0), out)
    return jnp.where(quarters >= 2, jnp.flip(out, 1), out)


def rotate_angle(image: Array, degrees: Array) -> jax.Array:
    """An image [H, H, C] rotated counter-clockwise about its centre; nearest pixel, corners black.

    Nearest and zero fill are the defaults of torchvision's RandomRotation.

    Raises:
      ValueError: the image is not square.
    """
    _check_square(image)
    size = image.shape[0]
    offset = jnp.arange(size) - (size - 1) / 2
    y, x = offset[:, None], offset[None, :]
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    row = jnp.round(cos * y + sin * x + (size - 1) / 2).astype(jnp.int32)
    column = jnp.round(cos * x - sin * y + (size - 1) / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    flat = jnp.asarray(image).reshape(size * size, -1)
    source = jnp.clip(row, 0, size - 1) * size + jnp.clip(column, 0, size - 1)
    return jnp.where(inside[..., None], flat[source], 0.0)


def permute_patches(image: Array, source: Array, grid: int) -> jax.Array:
    """An image [H, H, C] cut into grid x grid patches; position p shows patch source[p].

    source: int32 [grid²], a permutation, row-major.

    Raises:
      ValueError: the image is not square or its side does not divide by `grid`.
    """
    _check_square(image)
    size, channels = image.shape[0], image.shape[2]
    if size % grid:
        raise ValueError(
            f"a view of {size} px cannot be cut into {grid} x {grid} patches:"
            f" use a size that {grid} divides"
        )
    side = size // grid
    patches = jnp.asarray(image).reshape(grid, side, grid, side, channels).swapaxes(1, 2)
    patches = patches.reshape(grid * grid, side, side, channels)[source]
    patches = patches.reshape(grid, grid, side, side, channels).swapaxes(1, 2)
    return patches.reshape(size, size, channels)


def _check_square(image: Array) -> None:
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"an image of {image.shape[:2]} px: shifting transforms need square ones")
