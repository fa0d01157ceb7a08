"""Outlier exposure: Hendrycks et al. 2019, "Deep anomaly detection with outlier exposure".

Cross-entropy of labelled images, plus lambda times that of outliers (data.auxiliary) to the uniform
distribution (section 3, and 4.3 for classifiers); of two classifiers the sum of both. All go
through the network together, as in the released code (OpenOOD passes them one after the other).
There are as many outliers in a batch as images, there twice as many. From scratch, or as
fine-tuning of what model.weights names: the paper does either.
"""

import math
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

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        both = batch["both"].reshape(-1, *batch["both"].shape[2:])
        outputs, stats = net.apply(params, state.stats, both, train=True, key=key)
        inside, outside = _labelled.both_outputs(outputs)
        classes, metrics = _labelled.classified(inside, batch["label"])
        heads = _labelled.classifiers(outside)
        uniform = jnp.asarray(sum(cross_entropy_to_uniform(h).mean() for h in heads))
        metrics |= {"loss_class": classes, "loss_outliers": uniform}
        return classes + weight * uniform, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(loss),),
        views=_labelled.outlier_view(config),
        classes=config.head.outputs,
    )


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    _labelled.check_auxiliary(config)
    if not 0 <= config.method.outlier_weight < math.inf:
        raise ValueError(
            f"method.outlier_weight = {config.method.outlier_weight}: lambda is 0 (outliers reach"
            " BatchNorm alone) or more"
        )
