"""Contrastive and supervised training together: Winkens et al. 2020, "Contrastive training for
improved out-of-distribution detection" (METHODS: section 2). Hold this page beside the paper.

Stage one learns from L_con alone (class_weight = 0, no labels read), stage two from
L_con + lambda L_class; configs/simclr_joint_cifar.py chains them. L_con is the paper's Eq. 1, the
sum over both directions, twice the usual NT-Xent; lambda = 100 is relative to that.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from ood_jax.losses.contrastive import nt_xent
from ood_jax.methods import _pairs
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

DEFAULTS: dict[str, Any] = dict(
    temperature=1.0,  # tau; the optimum of the paper's Table 6
    class_weight=100.0,  # lambda; 0 = contrastive only
    label_smoothing=0.01,  # the paper's: .01 for CIFAR-10, .1 for CIFAR-100
    block=_pairs.BLOCK,
    **_pairs.VIEWS,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m = config.method
    rows = _pairs.row_map(config)

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        z, outputs, stats = _pairs.forward(net, params, state.stats, batch["pair"], key)
        contrastive = 2 * nt_xent(z, temperature=m.temperature, rows=rows).mean()  # Eq. 1
        metrics = {"loss_contrastive": contrastive} | _pairs.monitors(z, rows)
        value = contrastive
        if m.class_weight:
            assert outputs.logits is not None  # _check wants classes
            labels = batch["label"][:, None]  # of both views
            supervised, accuracy = _pairs.classified(
                outputs.logits, labels, label_smoothing=m.label_smoothing
            )
            value = contrastive + m.class_weight * supervised
            metrics |= {"loss_class": supervised, "accuracy": accuracy}
        return value, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(loss),),
        views=_pairs.pair_views(config),
        separable=False,
        classes=config.head.outputs if m.class_weight else 0,
        warn=_pairs.warnings,
    )


def _check(config: ConfigDict) -> None:
    _pairs.check_contrast(config)
    m = config.method
    if not 0 <= m.class_weight < math.inf:
        raise ValueError(f"method.class_weight = {m.class_weight}: use 0 (no classes) or more")
    if m.class_weight and config.head.outputs < 2:
        raise ValueError(
            f"method.class_weight = {m.class_weight} needs classes: head.outputs ="
            f" {config.head.outputs}; use their number, 2 or more"
        )
    if not 0 <= m.label_smoothing < 1:
        raise ValueError(
            f"method.label_smoothing = {m.label_smoothing}: use a share from 0 up to, not"
            " including, 1"
        )
