"""MixOE: Zhang et al. 2023, "Mixture outlier exposure: towards out-of-distribution detection in
fine-grained environments".

Cross-entropy of labelled images, plus beta times that of their mixtures with outliers
(data.auxiliary), lambda of the image and 1 - lambda of the outlier, whose target is lambda of the
image's class and 1 - lambda of the uniform distribution; of two classifiers the sum of both. As in
the released code one lambda and one box serve a whole batch, an outlier's patch is pasted into the
image, and images and mixtures pass one after the other, with BatchNorm statistics of their own.
OpenOOD's lambda is of Beta(.1, 1), its beta 1.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.classify import cross_entropy
from ood_jax.methods import _labelled
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

DEFAULTS: dict[str, Any] = dict(
    mix="linear",  # linear (mixup: every pixel) | cutmix (a box)
    alpha=1.0,  # lambda is drawn from Beta(alpha, alpha); the released script's for cutmix: 2
    mixture_weight=5.0,  # beta; the released script's
    **_labelled.VIEW,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    weight = config.method.mixture_weight

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        own_key, mixed_key = jax.random.split(key)
        own, stats = net.apply(params, state.stats, batch["image"], train=True, key=own_key)
        mixed, stats = net.apply(params, stats, batch["mixed"], train=True, key=mixed_key)
        classes, metrics = _labelled.classified(own, batch["label"])
        softened = partial(cross_entropy, label_smoothing=1 - batch["share"])
        mixtures, _ = _labelled.classified(mixed, batch["label"], loss=softened)
        metrics |= {"loss_class": classes, "loss_mixtures": mixtures}
        return classes + weight * mixtures, Aux(stats, state.memory, metrics)

    return Method(updates=(Update(loss),), views=_views(config), classes=config.head.outputs)


def _views(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"image", "mixed", "label", "share"}.

    image, mixed: float32 [B, size, size, 3]. label: int32 [B]. share: float32 scalar, lambda.
    """
    viewed = _labelled.outlier_view(config)
    alpha, mix = config.method.alpha, MIXES[config.method.mix]

    def views(host: Batch, key: Array) -> Batch:
        view_key, share_key, mix_key = jax.random.split(key, 3)
        batch = viewed(host, view_key)
        inside, outside = batch["both"][:, 0], batch["both"][:, 1]
        drawn = jax.random.beta(share_key, alpha, alpha)
        mixed, share = mix(inside, outside, drawn, mix_key)
        return {"image": inside, "mixed": mixed, "label": batch["label"], "share": share}

    return views


def linear(inside: Array, outside: Array, share: Array, key: Array) -> tuple[Array, Array]:
    """lambda inside + (1 - lambda) outside, and lambda = share; images [B, H, W, C]."""
    return share * inside + (1 - share) * outside, share


def cutmix(inside: Array, outside: Array, share: Array, key: Array) -> tuple[Array, Array]:
    """inside with a box of outside, and the share of pixels that are still inside's.

    The box has sqrt(1 - lambda) of both sides, its centre lies anywhere, and what reaches over the
    edge is cut off (Yun et al. 2019); its halves are rounded down, as in the released code.
    """
    sides = jnp.asarray(inside.shape[1:3])
    half = (sides * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, sides)
    rows, columns = (
        (jnp.arange(side) >= centre[i] - half[i]) & (jnp.arange(side) < centre[i] + half[i])
        for i, side in enumerate(inside.shape[1:3])
    )
    box = rows[:, None] & columns
    return jnp.where(box[None, :, :, None], outside, inside), 1 - box.mean()


MIXES = {"linear": linear, "cutmix": cutmix}


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    _labelled.check_auxiliary(config)
    m = config.method
    if m.mix not in MIXES:
        raise ValueError(f"method.mix = {m.mix!r}: use {' or '.join(map(repr, MIXES))}")
    if not 0 < m.alpha < math.inf:
        raise ValueError(f"method.alpha = {m.alpha}: Beta(alpha, alpha) needs a number above 0")
    if not 0 <= m.mixture_weight < math.inf:
        raise ValueError(f"method.mixture_weight = {m.mixture_weight}: beta is 0 or more")
