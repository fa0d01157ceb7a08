"""What one leave-out classifier says of an image: how sure it is, and its probabilities (ELOC)."""

from functools import lru_cache

import jax
import jax.numpy as jnp

from ood_jax.scorers.odin import heads, of_heads
from ood_jax.types import Array, Extra, Forward
from ood_jax.views.crops import evaluation_view

CERTAINTY, PROBABILITIES = "certainty", "probabilities"  # of `judging`'s arrays


def certainty(logits: Array) -> jax.Array:
    """(max_k p_k - 1 / C) + (ln C - H(p)) of p = softmax(logits): [..., C] -> float32 [...].

    At least 0. Vyas et al. 2018 take max_k p_k - H(p), which is 1 / C - ln C more: a constant, so
    images have the same order. At the paper's temperature p is nearly uniform, and what tells
    images apart would be lost in the rounding of ln C.
    """
    count = logits.shape[-1]
    below = logits - jnp.max(logits, -1, keepdims=True)
    excess = jnp.expm1(below).mean(-1, keepdims=True)  # mean of exp(below) less 1, in (-1, 0]
    log_ratio = below - jnp.log1p(excess)  # ln of p_k C
    p = jnp.exp(log_ratio) / count
    peak = -excess[..., 0] / (1 + excess[..., 0]) / count
    # Every term is at least 0, so that a small sum is not the difference of large numbers.
    return peak + jnp.sum(p * log_ratio - jnp.expm1(log_ratio) / count, -1)


@lru_cache  # members of one ensemble share it and its compilation
def judging(temperature: float, epsilon: float) -> Extra:
    """Of each image: "certainty" [B] at T, after ODIN's step; "probabilities" [B, C] as it is.

    x~ = x - epsilon sign(gradient of CE(f(x) / T, argmax)), as the public reproduction (YU1ut) has
    it. Of two classifiers on one trunk the means of both, each with its own x~ (Yu & Aizawa 2019,
    section 4.1).
    """

    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        inputs = evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)
        outputs = forward.apply(inputs)
        names = heads(outputs)
        moved = of_heads(forward, inputs, names, temperature=temperature, epsilon=epsilon)
        said = jnp.stack([jax.nn.softmax(getattr(outputs, name), -1) for name in names])
        return {CERTAINTY: certainty(moved).mean(0), PROBABILITIES: said.mean(0)}

    return Extra(f"eloc {temperature} {epsilon}", compute, train=False)
