"""Rotation: how ill a network tells an image's turns apart, less how sure it is of a class."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.types import Array, Extra, Features, Forward, Outputs, PyTree, Scorer
from ood_jax.views.crops import evaluation_view
from ood_jax.views.negatives import rotate_quarters

TURNS = 4


def rotation(config: ConfigDict, mesh: Mesh) -> Scorer:
    """Rotation prediction's score (Hendrycks et al. 2019). Nothing is fitted.

    score = 1/4 sum_r -log p(turned by r | image turned by r) - KL(uniform || p(class | image)), r =
    0 to 3 quarters, natural logarithms: as the released code and OpenOOD's RotPred have it, in
    whose base 2 it is larger by 1 / ln 2.

    Raises:
      ValueError: when extracting, a network without a second classifier of four outputs, or with
        four classes, which would be taken for it.
    """

    def score(state: PyTree, features: Features) -> Array:
        assert features.logits is not None  # `needs` has them
        return (features.extra or {})["turn_loss"] - uniform_divergence(features.logits)

    needs = ("logits", "turn_loss")
    return Scorer(lambda features: {}, score, needs=needs, extra=_turn_loss())


def uniform_divergence(logits: Array) -> jax.Array:
    """KL(uniform || softmax(logits)) = -log K - 1/K sum_k log p_k: [N, K] -> [N], 0 or more."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -jnp.log(jnp.float32(log_p.shape[1])) - log_p.mean(1)


@lru_cache
def _turn_loss() -> Extra:
    """{"turn_loss" float32 [B]}: the mean over four turns of -log p of the right one."""

    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        inputs = evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)
        _check(jax.eval_shape(forward.apply, inputs))

        def one(turn: Array) -> jax.Array:
            told = forward.apply(jax.vmap(rotate_quarters, (0, None))(inputs, turn)).second_logits
            assert told is not None  # see _check
            return -jax.nn.log_softmax(told)[:, turn]

        return {"turn_loss": lax.map(one, jnp.arange(TURNS)).mean(0)}

    return Extra("turn_loss", compute, train=False)


def _check(outputs: Outputs) -> None:
    second = outputs.second_logits
    classes = None if outputs.logits is None else outputs.logits.shape[-1]
    if second is None or second.shape[-1] != TURNS or classes == TURNS:
        raise ValueError(
            "a classifier of four turns beside one of another number of classes: train with"
            " method.name = rotation"
        )
