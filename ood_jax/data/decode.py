"""From bytes or any decoded array to uint8 RGB, and from any size to a square."""

import io
import struct
import zlib

import numpy as np
from etils import epath
from PIL import Image

from ood_jax.data.source import CorruptImage
from ood_jax.untrusted import IMAGE_BYTES, read_bytes

# Pillow knows more, and a file's name does not tell what is in it: of EPS it starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Where Pillow begins to warn of bombs; decoded, so many take 1 GB.
PIXELS = 89_478_485

# What Pillow's readers raise on damaged bytes; a disk that fails is not among them, as the caller
# reads the bytes.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error),
    *(ArithmeticError, AttributeError, AssertionError, RuntimeError, zlib.error, MemoryError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def read_file(path: epath.PathLike) -> np.ndarray:
    """As `read_image`, of a file.

    Raises:
      CorruptImage: as `read_image`; a pipe or device, or more bytes than any image has.
      OSError: the file cannot be read at all, which is no fault of the image.
    """
    try:
        data = read_bytes(path, IMAGE_BYTES)
    except ValueError as error:
        raise CorruptImage(str(error)) from None
    return read_image(data, str(path))


def read_image(
    data: bytes, name: str, *, formats: tuple[str, ...] = FORMATS, pixels: int = PIXELS
) -> np.ndarray:
    """Decodes an image in one of `formats` -> uint8 [H, W, 3].

    Grey and palette images become RGB, 16-bit grey keeps its high byte, transparency is dropped.

    Raises:
      CorruptImage: it cannot be read to its end, or has more than `pixels`; `name` says which it
        is.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if not 0 < image.width * image.height <= pixels:
                raise ValueError(
                    f"{image.width} x {image.height} pixels; up to {pixels:,} are read"
                )
            return pillow_rgb(image)
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise CorruptImage(f"{name}: cannot be decoded ({reason})") from None


def pillow_rgb(image: Image.Image) -> np.ndarray:
    """An opened image, as `read_image` reads it -> uint8 [H, W, 3]. Raises any of DAMAGED."""
    if image.mode.startswith("I"):
        high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, 2)
    # Palettes with transparency reach RGB by way of RGBA; Pillow warns otherwise.
    via = image.convert("RGBA") if "transparency" in image.info else image
    return np.asarray(via.convert("RGB"))


def as_rgb(image: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] -> uint8 [H, W, 3], alpha dropped.

    Raises:
      CorruptImage: another type or shape, or no pixels.
    """
    if image.size == 0:
        raise CorruptImage(f"{name}: {list(image.shape)} has no pixels")
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise CorruptImage(f"{name}: {image.dtype} {list(image.shape)} is not uint8 [H, W, 1|3|4]")
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image[..., :3]


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3]: shorter side to `size`, the middle cut out.

    Antialiased bicubic, as Pillow has it; an image that is size x size already is untouched.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    whole = Image.fromarray(np.ascontiguousarray(image))
    box = (x, y, x + side, y + side)
    return np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box))
