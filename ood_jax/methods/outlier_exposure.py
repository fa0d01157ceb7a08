"""Outlier exposure: Hendrycks et al. 2019, "Deep anomaly detection with outlier exposure".

Cross-entropy of labelled images, plus lambda times that of outliers to the uniform distribution
(section 3, and 4.3 for classifiers); of two classifiers the sum of both. Outliers are images
(data.auxiliary), which go through the network together with the others, as in the released code
(OpenOOD passes them one after the other); or mined or generated vectors (data.near, data.far) in
the place of features, which go through the classifier alone. There are as many of each kind in a
batch as images, there twice as many. From scratch, or as fine-tuning of what model.weights names:
the paper does either; vectors are those of the network that they were made from.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.classify import cross_entropy_to_uniform
from ood_jax.methods import _labelled
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

DEFAULTS: dict[str, Any] = dict(
    outlier_weight=0.5,  # lambda
    **_labelled.VIEW,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    weight = config.method.outlier_weight

    vectors = tuple(kind for kind in ("near", "far") if config.data[kind])
    images = bool(config.data.auxiliary)

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        seen = batch["both"].reshape(-1, *batch["both"].shape[2:]) if images else batch["image"]
        outputs, stats = net.apply(params, state.stats, seen, train=True, key=key)
        inside, outside = _labelled.both_outputs(outputs) if images else (outputs, None)
        classes, metrics = _labelled.classified(inside, batch["label"])
        heads = [] if outside is None else _labelled.classifiers(outside)
        heads += [_answers(net, params, batch[kind]) for kind in vectors]
        uniform = jnp.asarray(sum(cross_entropy_to_uniform(h).mean() for h in heads))
        metrics |= {"loss_class": classes, "loss_outliers": uniform}
        return classes + weight * uniform, Aux(stats, state.memory, metrics)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        params, stats = net.init(key, batch["image"])
        for kind in vectors:
            _answers(net, params, batch[kind])  # refuses another width
        return params, stats

    return Method(
        updates=(Update(loss),),
        views=_views(config, vectors),
        init=init,
        classes=config.head.outputs,
        reads=vectors,
    )


def _answers(net: Net, params: PyTree, features: Array) -> Array:
    """The classifier's logits [B, K] of features [B, D]; the first one's, where there are two."""
    assert net.last_layer is not None  # check_classifier refuses a network without
    kernel, bias, _ = net.last_layer(params)
    if features.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"outliers of width {features.shape[1]} where the network's features have"
            f" {kernel.shape[0]}: make them of embeddings of the same network"
        )
    return jnp.matmul(features, kernel) + bias


def _views(config: ConfigDict, vectors: tuple[str, ...]) -> Callable[[Batch, Array], Batch]:
    image_views = _labelled.outlier_view if config.data.auxiliary else _labelled.labelled_view
    viewed = image_views(config)
    return lambda host, key: viewed(host, key) | {kind: host[kind] for kind in vectors}


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    if not (config.data.near or config.data.far):
        _labelled.check_auxiliary(config)
    if not 0 <= config.method.outlier_weight < math.inf:
        raise ValueError(
            f"method.outlier_weight = {config.method.outlier_weight}: lambda is 0 (outliers reach"
            " BatchNorm alone) or more"
        )
