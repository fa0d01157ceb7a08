"""ODIN: the largest softmax probability after a small step of the image towards its own class."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.types import Array, Extra, Features, Forward, Outputs, Scorer
from ood_jax.views.crops import evaluation_view


def odin(config: ConfigDict, mesh: Mesh) -> Scorer:
    """ODIN (Liang et al. 2018): odin_temperature T, odin_epsilon. Nothing is fitted.

    score = -max softmax(f(x~) / T), x~ = x - epsilon sign(gradient of CE(f(x) / T, argmax)). Of two
    classifiers of as many classes the mean of their scores, each with its own x~ (Yu & Aizawa 2019,
    section 4.1). As OpenOOD's, the sign of a gradient of 0 is 1, and the step on normalised inputs
    is divided by their standard deviation: epsilon is in units of pixels in [0, 1].

    Raises:
      ValueError: T not above 0, epsilon below 0; when extracting, a network without logits.
    """
    temperature, epsilon = numbers(config)

    def fit(features: Features) -> dict[str, Any]:
        return {}

    def score(state: dict[str, Any], features: Features) -> Array:
        return -(features.extra or {})["odin"]

    extra = _extra(temperature, epsilon)
    return Scorer(fit, score, needs=("odin",), extra=extra)


def numbers(config: ConfigDict) -> tuple[float, float]:
    """T and epsilon of `config.score`.

    Raises:
      ValueError: T not above 0, epsilon below 0.
    """
    if not config.odin_temperature > 0:
        raise ValueError(f"score.odin_temperature = {config.odin_temperature}: use above 0")
    if not config.odin_epsilon >= 0:
        raise ValueError(f"score.odin_epsilon = {config.odin_epsilon}: use 0 or more")
    return float(config.odin_temperature), float(config.odin_epsilon)


def tempered(
    logits: Callable[[Array], Array],
    inputs: Array,
    *,
    temperature: float,
    epsilon: float,
    std: Array | tuple[float, ...],
) -> jax.Array:
    """logits(x~) / T of each of B inputs, float32 [B, K].

    logits: [B, H, W, C] -> [B, K], each row from its own image. std: per channel, of the inputs'
    normalisation; broadcast to [B, H, W, C].
    """

    def loss(x: Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits(x) / temperature)
        own = jnp.argmax(log_probs, -1, keepdims=True)
        return -jnp.sum(jnp.take_along_axis(log_probs, own, -1))

    steps = jnp.where(jax.grad(loss)(inputs) >= 0, 1.0, -1.0) / jnp.asarray(std, inputs.dtype)
    return jnp.asarray(logits(inputs - epsilon * steps)) / temperature


def of_heads(
    forward: Forward, inputs: Array, names: list[str], *, temperature: float, epsilon: float
) -> jax.Array:
    """`tempered` of each of the H classifiers that `names`, fields of Outputs, are: [H, B, K]."""

    def of_head(name: str) -> jax.Array:
        return tempered(
            lambda x: getattr(forward.apply(x), name),
            inputs,
            temperature=temperature,
            epsilon=epsilon,
            std=forward.std,
        )

    return jnp.stack([of_head(name) for name in names])


@lru_cache  # scorers with the same numbers share one Extra and its compilation
def _extra(temperature: float, epsilon: float) -> Extra:
    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        inputs = evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)
        names = heads(jax.eval_shape(forward.apply, inputs))
        moved = of_heads(forward, inputs, names, temperature=temperature, epsilon=epsilon)
        return {"odin": jax.nn.softmax(moved).max(-1).mean(0)}

    return Extra(f"odin {temperature} {epsilon}", compute, train=False)


def heads(outputs: Outputs) -> list[str]:
    """The fields of Outputs that classifiers of the same classes are, one or two.

    Raises:
      ValueError: there is none.
    """
    if outputs.logits is None:
        raise ValueError("logits: use a network with a classifier or soft-classes")
    second = outputs.second_logits  # of the same classes, unless it tells shifts apart
    same = second is not None and second.shape == outputs.logits.shape
    return ["logits", "second_logits"] if same else ["logits"]
