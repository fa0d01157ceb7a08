"""The sets that need no download: procedural glyphs and what is scored against them."""

import functools

import numpy as np
from PIL import Image

from ood_jax.data import glyphs
from ood_jax.data.source import Source, from_array

PHOTOGRAPHS = ("china", "flower")
PATCHES = 2_000
PATCH_SIDES = (32, 160)  # px of the square cut from the 640 x 427 photograph, before shrinking


def open_builtin(name: str) -> Source:
    """The built-in set "glyphs/SPLIT" or "patches/PHOTOGRAPH"; every image 32 x 32.

    Raises:
      ValueError: no such set.
    """
    spec = f"builtin:{name}"
    kind, _, part = name.partition("/")
    if kind == "glyphs" and part in glyphs.SPLITS:
        images, labels = glyphs.render(part)
        if part == "auxiliary":
            images, labels = _auxiliary()
            return from_array(spec, images, labels, (*glyphs.AUXILIARY, "flower"))
        return from_array(spec, images, labels, tuple(glyphs.SPLITS[part].characters))
    if name == "glyphs/digits":
        return from_array(spec, *_handwritten(), tuple("0123456789"))
    if kind == "patches" and part in PHOTOGRAPHS:
        return from_array(spec, _patches(part))
    known = [f"glyphs/{s}" for s in (*glyphs.SPLITS, "digits")]
    known += [f"patches/{p}" for p in PHOTOGRAPHS]
    raise ValueError(f"no built-in set {name!r}: there are {', '.join(known)}")


@functools.cache
def _auxiliary() -> tuple[np.ndarray, np.ndarray]:
    """Characters and patches of the flower photograph (3 to 1), shuffled together."""
    images, labels = glyphs.render("auxiliary")
    patches = _patches("flower")
    every = np.concatenate([images, patches])
    names = np.concatenate([labels, np.full(len(patches), len(glyphs.AUXILIARY), np.int32)])
    order = np.random.default_rng([2026, 10]).permutation(len(every))
    return every[order], names[order]


@functools.cache
def _handwritten() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 enlarged to 32, in the glyphs' colours."""
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    masks = [
        Image.fromarray(d.reshape(8, 8).astype(np.float32)).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        for d in digits
    ]
    stacked = np.stack([np.asarray(m) for m in masks]) / 16
    images = glyphs.colour(stacked.clip(0, 1), np.random.default_rng([2026, 11]))
    return images, labels.astype(np.int32)


@functools.cache
def _patches(photograph: str) -> np.ndarray:
    """uint8 [PATCHES, 32, 32, 3]: squares of many sizes from one of scikit-learn's photographs."""
    from sklearn.datasets import load_sample_image

    whole = Image.fromarray(load_sample_image(f"{photograph}.jpg"))
    rng = np.random.default_rng([2026, 12 + PHOTOGRAPHS.index(photograph)])
    low, high = PATCH_SIDES
    sides = np.rint(low * (high / low) ** rng.random(PATCHES)).astype(int)
    corners = rng.random((PATCHES, 2))
    out = np.empty((PATCHES, 32, 32, 3), np.uint8)
    for i, (side, (u, v)) in enumerate(zip(sides, corners, strict=True)):
        x, y = int(u * (whole.width - side)), int(v * (whole.height - side))
        box = (x, y, x + int(side), y + int(side))
        out[i] = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC, box))
    return out
