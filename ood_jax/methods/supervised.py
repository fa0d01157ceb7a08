"""Supervised classification: the baseline that scores with labels are compared on.

Cross-entropy with label smoothing on one random view of each image (METHODS: section 6).
"""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.classify import cross_entropy
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update
from ood_jax.views.crops import multi_view, simclr_view
from ood_jax.views.specs import check_views

DEFAULTS: dict[str, Any] = dict(
    label_smoothing=0.0,  # share of each target that is spread over all classes
    crop_scale=(0.25, 1.0),  # share of the image's area in a crop
    crop_ratio=(3 / 4, 4 / 3),  # width / height of a crop
    flip=0.5,  # probability
    colour=0.0,  # strength of SimCLR's distortion; .5 is its transform for CIFAR
    grey=0.0,  # probability
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m = config.method
    view = simclr_view(
        config.model.image_size, scale=m.crop_scale, flip=m.flip, colour=m.colour, grey=m.grey
    )._replace(ratio=m.crop_ratio)
    check_views((view,))

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        outputs, stats = net.apply(params, state.stats, batch["image"], train=True, key=key)
        logits, labels = outputs.logits, batch["label"]
        assert logits is not None  # _check refuses a network without a head
        value = cross_entropy(logits, labels, label_smoothing=m.label_smoothing).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return value, Aux(stats, state.memory, {"accuracy": accuracy})

    def views(host: Batch, key: Array) -> Batch:
        crops = multi_view(
            host["image"],
            host["index"],
            key,
            (view,),
            mean=config.data.mean,
            std=config.data.std,
        )
        return {"image": crops[:, 0], "label": host["label"]}

    return Method(updates=(Update(loss),), views=views, classes=config.head.outputs)


def _check(config: ConfigDict) -> None:
    if config.head.name == "none" or config.head.outputs < 2:
        raise ValueError(
            f"supervised needs classes: head.name {config.head.name!r} with head.outputs"
            f" {config.head.outputs}; use head.name linear and the number of classes, 2 or more"
        )
    if not 0 <= config.method.label_smoothing < 1:
        raise ValueError(
            f"method.label_smoothing = {config.method.label_smoothing}: use a share from 0 up to,"
            " not including, 1"
        )
