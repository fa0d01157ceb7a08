"""One classifier of a leave-out ensemble: Vyas et al. 2018, "Out-of-distribution detection using an
ensemble of self supervised leave-out classifiers" (ELOC). `python -m ood_jax.eloc` joins them.

L = mean_i -log p_i(y_i) + beta max(m + mean_i H(p_i) - mean_o H(p_o), 0): i of the classes
that it learns, o of those it leaves out, which are data.auxiliary. Of two classifiers on one trunk
each has the whole loss (Yu & Aizawa 2019, section 4.1). Both groups of images go through the
network together, so BatchNorm sees them together; the public reproduction (YU1ut) passes them one
after the other. The paper keeps the checkpoint that detects best on OOD validation images; this
keeps the last, and sees none.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ood_jax import leave_out
from ood_jax.losses.leave_out import margin_entropy
from ood_jax.methods import _labelled
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

DEFAULTS: dict[str, Any] = dict(
    **_labelled.VIEW,
    margin=0.4,  # m, nats, below ln of the classes that are learnt
    entropy_weight=0.2,  # beta; the public reproduction's
    classes=0,  # of the whole set
    splits=5,  # K, parts of the classes and classifiers of the ensemble
    split=0,  # which part this classifier leaves out, 0 to K - 1
    split_seed=3,  # of the partition; 3 = the public reproduction's
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; `ood_jax.leave_out.cut` makes its sets.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m = config.method

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        images = batch["both"].reshape(-1, *batch["both"].shape[2:])
        outputs, stats = net.apply(params, state.stats, images, train=True, key=key)
        inside, outside = _labelled.both_outputs(outputs)
        value, metrics = _labelled.classified(inside, batch["label"])
        heads = zip(_labelled.classifiers(inside), _labelled.classifiers(outside), strict=True)
        entropies = jnp.stack([margin_entropy(i, o, margin=m.margin) for i, o in heads]).sum()
        metrics |= {"margin_entropy": entropies}
        return value + m.entropy_weight * entropies, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(loss),),
        views=_labelled.outlier_view(config),
        separable=False,  # the hinge is on the batch's mean entropies
        classes=config.head.outputs,
    )


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    _labelled.check_auxiliary(config)
    leave_out.left_out(config.method)
    if "[renumber=" in config.data.train:  # other sets are cut by their own maker
        leave_out.whole(config)
    m, head = config.method, config.head
    most = np.log(head.outputs)
    if not 0 <= m.margin < most:
        raise ValueError(
            f"method.margin = {m.margin}: use 0 or more and less than ln {head.outputs} ="
            f" {most:.4g}, the largest entropy of {head.outputs} classes"
        )
    if not 0 <= m.entropy_weight < np.inf:
        raise ValueError(f"method.entropy_weight = {m.entropy_weight}: use 0 or more")
    if head.second_outputs not in (0, head.outputs):
        raise ValueError(
            f"head.second_outputs = {head.second_outputs}: use {head.outputs}, a second classifier"
            " of the same classes, or 0"
        )
