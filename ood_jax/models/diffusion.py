"""The noise prediction of a diffusion on vectors: a residual MLP, told time and condition by FiLM.

Vectors are embeddings or flattened latents of images; the condition is an embedding.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ood_jax.types import Array, PyTree

TIMES = 1000.0  # the embedded time of pure noise
SLOWEST = 10_000.0  # ratio of the shortest to the longest wave of the time embedding


class Denoiser(NamedTuple):
    """A noise prediction as two pure functions.

    init: (key) -> params.
    apply: (params, noisy float32 [B, E], signal float32 [B], condition float32 [B, C], given bool
        [B]) -> the noise in `noisy`, float32 [B, E]. signal: sqrt(alpha_bar) in (0, 1], the share
        of the clean vector in the noisy one. given: False = the learnt null condition in its place.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Array, Array, Array, Array], Array]


def denoiser(size: int, condition: int, *, width: int, depth: int) -> Denoiser:
    """The Denoiser of vectors [B, size], conditioned on vectors [B, condition].

    Args:
      width: of the hidden layers, even. depth: residual blocks of two layers.

    Raises:
      ValueError: a number below 1, an odd width.
    """
    for name, number in (("size", size), ("condition", condition), ("depth", depth)):
        if number < 1:
            raise ValueError(f"diffusion: {name} = {number}: use 1 or more")
    if width < 2 or width % 2:
        raise ValueError(f"diffusion: width = {width}: use an even number, 2 or more")
    network = _Denoiser(size, width, depth)

    def init(key: jax.Array) -> PyTree:
        one = jnp.ones(1)
        vectors = jnp.zeros((1, size)), one, jnp.zeros((1, condition)), one > 0
        return network.init(key, *vectors)["params"]

    def apply(params: PyTree, noisy: Array, signal: Array, condition: Array, given: Array) -> Array:
        return jnp.asarray(network.apply({"params": params}, noisy, signal, condition, given))

    return Denoiser(init, apply)


class _Denoiser(nn.Module):
    size: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, noisy: Array, signal: Array, condition: Array, given: Array) -> Array:
        null = self.param("null", nn.initializers.zeros, condition.shape[-1:])
        told = nn.Dense(self.width, name="condition")(
            jnp.where(given[:, None], condition, null)
        ) + nn.Dense(self.width, name="time")(time_embedding(signal, self.width))
        told = nn.silu(nn.Dense(self.width, name="told")(nn.silu(told)))
        x = nn.Dense(self.width, name="in")(noisy)
        for i in range(self.depth):
            x = x + _Block(self.width, name=f"block_{i}")(x, told)
        velocity = nn.Dense(self.size, kernel_init=nn.initializers.zeros, name="out")(
            _modulated(x, told, "film_out")
        )
        # For data of mean 0 and variance 1 the first term alone is the best guess that knows
        # neither condition nor correlations; what is left to learn is the velocity of Salimans & Ho
        # (2022, Progressive distillation, appendix D), from which a clean vector follows without
        # dividing by a small signal.
        share = signal[:, None]
        return jnp.sqrt(jnp.maximum(1 - share * share, 0)) * noisy + share * velocity


class _Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Array, told: Array) -> Array:
        y = nn.silu(nn.Dense(self.width, name="mlp_0")(_modulated(x, told, "film")))
        return nn.Dense(self.width, kernel_init=nn.initializers.zeros, name="mlp_1")(y)


def _modulated(x: Array, told: Array, name: str) -> Array:
    """FiLM (Perez et al. 2018) of the normalised x, as DiT's adaLN: at first it changes nothing."""
    film = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, name=name)(told)
    scale, shift = jnp.split(film, 2, axis=-1)
    return (
        nn.LayerNorm(use_scale=False, use_bias=False, name=f"{name}_norm")(x) * (1 + scale) + shift
    )


def time_embedding(signal: Array, width: int) -> Array:
    """[B] -> cosines and sines [B, width] of the angle whose cosine is `signal`.

    The sinusoids of Vaswani et al. (2017) as in Stable Diffusion's code, which embeds the number of
    the step; the angle, 0 to 1,000 for clean to noise, means the same under every schedule.
    """
    half = width // 2
    angle = jnp.arccos(jnp.clip(signal, 0, 1)) * (TIMES * 2 / math.pi)
    waves = angle[:, None] * jnp.exp(-math.log(SLOWEST) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(waves), jnp.sin(waves)], axis=-1)
