"""Diffusion on vectors: noise schedules, the forward process, what training minimises.

Names as in Ho et al. (2020) and Nichol & Dhariwal (2021): alpha_bar_t is the share of the clean
vector's variance that is left at step t. Steps count from 0, as in Stable Diffusion's code.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.scorers.cosine import check_features
from ood_jax.types import Array

SCHEDULES = ("scaled_linear", "cosine")
ROWS = 65_536  # rows whose moments are taken at once

# (noisy [B, E], signal [B], condition [B, C], given bool [B]) -> noise [B, E], see models.diffusion
Predict = Callable[[Array, Array, Array, Array], Array]


def alphas_cumprod(schedule: str = "scaled_linear", times: int = 1000) -> np.ndarray:
    """alpha_bar of every step, float64 [times], descending within (0, 1).

    scaled_linear: the roots of beta run linearly from those of .00085 to .012, Stable Diffusion's.
    cosine: Nichol & Dhariwal (2021), Eq. 17, offset .008, no beta above .999.

    Raises:
      ValueError: an unknown schedule, fewer than 2 steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}: use {' or '.join(SCHEDULES)}")
    if times < 2:
        raise ValueError(f"times = {times} noise steps: use 2 or more, 1000 as Stable Diffusion")
    if schedule == "scaled_linear":
        betas = np.linspace(0.00085**0.5, 0.012**0.5, times) ** 2
    else:
        angles = (np.arange(times + 1) / times + 0.008) / 1.008 * np.pi / 2
        left = np.cos(angles) ** 2
        betas = np.clip(1 - left[1:] / left[:-1], 0, 0.999)
    return np.cumprod(1 - betas)


def noised(clean: Array, noise: Array, alpha_bar: Array) -> Array:
    """q(x_t | x_0), Ho et al. Eq. 4: sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise.

    clean, noise: [B, E]. alpha_bar: [B] or a scalar.
    """
    alpha_bar = jnp.asarray(alpha_bar)[..., None]
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1 - alpha_bar) * noise


def denoising_loss(
    predict: Predict,
    clean: Array,
    condition: Array,
    index: Array,
    key: Array,
    *,
    alphas: np.ndarray,
    blur: float,
    dropout: float,
) -> Array:
    """Mean over dimensions of (noise - predicted noise)^2, Ho et al. Eq. 14, of a random step.

    The condition of a vector is the embedding of the same image with Gaussian noise. Mined
    outliers are embeddings with Gaussian noise too, so the network has met their like: it answers
    one with the images that might have been blurred into it, and needs no labels.

    Args:
      clean: [B, E], standardised. condition: embeddings [B, C], standardised. index: int [B], what
        tells the examples apart: their draws are of (key, index), in any order and on any device.
      alphas: [T], `alphas_cumprod`. blur: standard deviation of the condition's noise. dropout:
        share of examples that learn without condition (Ho & Salimans 2022).

    Returns:
      float32 [B].

    Raises:
      ValueError: a blur below 0, a dropout outside [0, 1].
    """
    if not 0 <= blur < math.inf:
        raise ValueError(f"blur = {blur}: use 0 (none) or more")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout = {dropout}: use 0 (never) to 1 (always without condition)")

    def drawn(index: Array) -> tuple[Array, ...]:
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        return (
            jax.random.randint(keys[0], (), 0, len(alphas)),
            jax.random.normal(keys[1], clean.shape[1:]),
            jax.random.normal(keys[2], condition.shape[1:]),
            jax.random.uniform(keys[3]) >= dropout,
        )

    times, noise, blurring, given = jax.vmap(drawn)(index)
    alpha_bar = jnp.asarray(alphas, jnp.float32)[times]
    guess = predict(
        noised(clean, noise, alpha_bar), jnp.sqrt(alpha_bar), condition + blur * blurring, given
    )
    return jnp.mean((noise - guess) ** 2, axis=-1)


class Standard(NamedTuple):
    """Mean and standard deviation of a train set, float32 [E] each; 0 = of a constant dimension."""

    mean: np.ndarray
    std: np.ndarray


def standard_of(rows: Array, name: str = "train", *, keep_constant: bool = False) -> Standard:
    """The Standard of rows [N, E]; `name` is what messages call them.

    A dimension that never varies, such as a ReLU that never fires, has no deviation to divide by.
    keep_constant: it is 0 when standardised, and what it was when restored.

    Raises:
      ValueError: not [N, E], values that are not finite, dimensions of zero variance: any of them,
        with `keep_constant` all.
    """
    rows = check_features(rows, name)
    same = rows.min(0) == rows.max(0)
    if same.all() or (same.any() and not keep_constant):
        remedy = "has the teacher collapsed?"
        if not same.all():
            remedy = "use another teacher, or keep them as they are with method.keep_constant=True"
        raise ValueError(
            f"{same.sum()} of {rows.shape[1]} dimensions of the {name} features have zero variance,"
            f" the first is {np.argmax(same)}: {remedy}"
        )
    blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    mean = sum(block.sum(0, np.float64) for block in blocks) / len(rows)
    variance = sum(((block - mean) ** 2).sum(0) for block in blocks) / len(rows)
    std = np.where(same, 0.0, np.sqrt(variance))
    return Standard(np.where(same, rows[0], mean).astype(np.float32), std.astype(np.float32))


def standardised(rows: Array, standard: Standard) -> Array:
    """Rows [N, E] with the mean and standard deviation of the train set taken out."""
    varies = standard.std > 0
    return np.where(varies, (rows - standard.mean) / np.where(varies, standard.std, 1), 0)


def restored(rows: Array, standard: Standard) -> Array:
    """What `standardised` took out is put back."""
    return rows * standard.std + standard.mean
