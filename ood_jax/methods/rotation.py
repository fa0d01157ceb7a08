"""Rotation prediction: Hendrycks et al. 2019, "Using self-supervised learning can improve model
robustness and uncertainty", section 4; OpenOOD's RotPred.

Cross-entropy of images, plus lambda times that of a second classifier which tells by how many
quarters an image is turned; each image passes under all four turns, and only upright ones are
classified. The score `rotation` reads both classifiers. The released code shares its weight 3 with
two translations of weight 0: lambda 1, as OpenOOD's and MixOE's. The paper's lambda .5 is that of
its experiments on robustness.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.methods import _labelled, _pairs
from ood_jax.models.heads import CLASSIFIERS
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

TURNS = 4  # by 0, 90, 180 and 270 degrees

DEFAULTS: dict[str, Any] = dict(
    rotation_weight=1.0,  # lambda
    **_labelled.VIEW,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`.

    head.outputs is the number of classes, head.second_outputs the four turns.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    weight = config.method.rotation_weight

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        turned = batch["turned"].reshape(-1, *batch["turned"].shape[2:])
        outputs, stats = net.apply(params, state.stats, turned, train=True, key=key)
        shaped = jax.tree.map(lambda x: x.reshape(-1, TURNS, *x.shape[1:]), outputs)
        classes, accuracy = _pairs.classified(shaped.logits[:, :1], batch["label"][:, None])
        turns, turns_told = _pairs.classified(shaped.second_logits, jnp.arange(TURNS))
        metrics = {
            "accuracy": accuracy,
            "rotation_accuracy": turns_told,
            "loss_class": classes,
            "loss_rotation": turns,
        }
        return classes + weight * turns, Aux(stats, state.memory, metrics)

    return Method(updates=(Update(loss),), views=_views(config), classes=config.head.outputs)


def _views(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"turned" float32 [B, 4, size, size, 3], "label" int32 [B]}.

    Turned after the flip, which would make a quarter turn look like three.
    """
    viewed = _labelled.labelled_view(config)

    def views(host: Batch, key: Array) -> Batch:
        batch = viewed(host, key)
        turned = [jnp.rot90(batch["image"], turn, axes=(1, 2)) for turn in range(TURNS)]
        return {"turned": jnp.stack(turned, axis=1), "label": batch["label"]}

    return views


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    head, weight = config.head, config.method.rotation_weight
    if head.name not in CLASSIFIERS:
        raise ValueError(f"head.name {head.name!r}: rotation needs {' or '.join(CLASSIFIERS)}")
    if head.second_outputs != TURNS:
        raise ValueError(
            f"head.second_outputs = {head.second_outputs}: rotation tells four turns apart, use 4"
        )
    if head.outputs == TURNS:
        raise ValueError(
            "head.outputs = 4: scores take a second classifier of as many outputs for one of the"
            " same classes; use 5, of which one has no images"
        )
    if not 0 <= weight < math.inf:
        raise ValueError(f"method.rotation_weight = {weight}: lambda is 0 or more")
