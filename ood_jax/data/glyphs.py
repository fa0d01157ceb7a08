"""Characters rendered from the fonts inside matplotlib: small images whose classes are shapes.

Lightness, contrast, tint and polarity are drawn alike for every character, so that colour says
nothing about the class. Sets share no character, and no two characters of different sets look
the same upright (nor, for the auxiliary set, upside down): A-G, J, K, L are in-distribution.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 32  # px of an image
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
LETTERS = "ABCDEFGJKL"
NEAR = "HIMNOPQRSTUVWXYZ0123456789"
GREEK = "ΓΔΘΛΞΠΣΦΨΩБДЖИЛЦЧШЩЪЫЭЮЯ"
# Without c, j, k (capitals in-distribution), without i, l, o, p, s, u-z (like a near capital),
# without g, q (like 9), and without d, h, m, n (upside down like p, Ч, w, u: methods rotate
# auxiliary images).
AUXILIARY = "abefrtæ" + '#%&@*+?!{=~/";±'
VALIDATION = "§¶÷¤«†‡"

EM = 24.0  # px of the font size in the image, before the random scale
OVERSAMPLE = 2  # masks are drawn and moved at this many times the size, then averaged
ROTATION = 12.0  # degrees either way
SCALE = (0.85, 1.15)
SHIFT = 2.0  # px either way, horizontally and vertically
DARK = 0.5  # share of glyphs that are darker than their ground
CONTRAST = (0.3, 0.55)  # between glyph and ground, in lightness from 0 to 1
TINT = 0.08  # channels leave their lightness by up to this
NOISE = 0.03  # standard deviation of the pixel noise


class Split(NamedTuple):
    """characters: one class each; total: images; seed: of everything drawn for it."""

    characters: str
    total: int
    seed: int


SPLITS = {
    "train": Split(LETTERS, 10_000, 1),
    "test": Split(LETTERS, 2_000, 2),
    "near": Split(NEAR, 2_000, 3),
    "greek": Split(GREEK, 2_000, 4),
    "auxiliary": Split(AUXILIARY, 6_000, 5),
    "validation": Split(VALIDATION, 1_000, 6),
}


@functools.cache
def render(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of a key of SPLITS.

    Classes are balanced and in random order; the label is the position in `characters`.
    """
    characters, count, seed = SPLITS[split]
    rng = np.random.default_rng([2026, seed])
    labels = rng.permutation(np.arange(count, dtype=np.int32) % len(characters))
    faces = rng.integers(len(FACES), size=count)
    angles = np.deg2rad(rng.uniform(-ROTATION, ROTATION, count))
    scales = rng.uniform(*SCALE, count)
    shifts = rng.uniform(-SHIFT, SHIFT, (count, 2))
    masks = np.empty((count, SIDE, SIDE), np.uint8)
    for i in range(count):
        drawn = _mask(FACES[faces[i]], characters[labels[i]])
        masks[i] = _moved(drawn, angles[i], scales[i], shifts[i])
    images = colour(masks.astype(np.float32) / 255, rng)
    images.setflags(write=False)
    return images, labels


def colour(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Masks float32 [N, H, W] in [0, 1] -> uint8 [N, H, W, 3], lit, tinted and with noise.

    The ground's and the glyph's lightness span overlapping ranges, whichever is the darker.
    """
    count = len(masks)
    contrast = rng.uniform(*CONTRAST, count)
    low = rng.uniform(0.1, 0.9 - contrast)
    dark = rng.random(count) < DARK
    glyph = np.where(dark, low, low + contrast)[:, None]
    ground = np.where(dark, low + contrast, low)[:, None]
    glyph = (glyph + rng.uniform(-TINT, TINT, (count, 3))).astype(np.float32)
    ground = (ground + rng.uniform(-TINT, TINT, (count, 3))).astype(np.float32)
    images = np.empty((*masks.shape, 3), np.uint8)
    for start in range(0, count, 500):  # in blocks, so that float copies stay small
        part = slice(start, start + 500)
        base = ground[part, None, None]
        lit = base + masks[part, ..., None] * (glyph[part, None, None] - base)
        lit += NOISE * rng.standard_normal(lit.shape, dtype=np.float32)
        images[part] = (lit.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return images


@functools.cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(str(path), round(EM * OVERSAMPLE))


@functools.cache
def _mask(face: str, character: str) -> Image.Image:
    """The character in white on black, its box in the middle of an oversampled square."""
    side = SIDE * OVERSAMPLE
    left, top, right, bottom = _font(face).getbbox(character)
    image = Image.new("L", (side, side))
    corner: Any = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=_font(face))
    return image


def _moved(mask: Image.Image, angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """uint8 [SIDE, SIDE]: the mask rotated and scaled about its middle, shifted and shrunk."""
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle = mask.width / 2
    x, y = middle + OVERSAMPLE * shift
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    turned = mask.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned.reduce(OVERSAMPLE))
