"""MCD: Yu & Aizawa 2019, "Unsupervised out-of-distribution detection by maximum classifier
discrepancy" (METHODS: section 5). Hold this page beside the paper.

Fine-tuning of two classifiers on one trunk, which `supervised` has trained with head.second_outputs
(Eq. 2). Each mini-batch is used twice: step A classifies its labelled images; step B classifies
them and pushes the classifiers apart on as many unlabelled ones of data.auxiliary, a mixture of
images of the classes and of others. Both steps have the same views and one optimiser.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.discrepancy import discrepancy, margin_loss
from ood_jax.methods import _labelled
from ood_jax.models.heads import CLASSIFIERS
from ood_jax.types import Array, Aux, Batch, Method, Net, Outputs, PyTree, TrainState, Update

FALLEN = 0.8  # of the accuracy that fine-tuning began with

DEFAULTS: dict[str, Any] = dict(
    margin=1.2,  # m of Eq. 5, nats; below ln K, the most that two entropies can differ by
    **_labelled.VIEW,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    margin = config.method.margin

    def classify(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        """Step A: L_sup (Eq. 2)."""
        labelled = batch["both"][:, 0]
        outputs, stats = net.apply(params, state.stats, labelled, train=True, key=key)
        value, metrics = _labelled.classified(outputs, batch["label"])
        before = jnp.where(state.step == 0, metrics["accuracy"], state.memory["accuracy_before"])
        metrics |= {"accuracy_before": before}
        return value, Aux(stats, {"accuracy_before": before}, metrics)

    def push(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        """Step B: L_sup + L_unsup (Eqs. 3 to 5), all images in one pass."""
        both = batch["both"].reshape(-1, *batch["both"].shape[2:])
        outputs, stats = net.apply(params, state.stats, both, train=True, key=key)
        labelled, unlabelled = _labelled.both_outputs(outputs)
        supervised, metrics = _labelled.classified(labelled, batch["label"])
        apart = discrepancy(*_labelled.classifiers(unlabelled))
        unsupervised = margin_loss(apart, margin=margin)
        metrics |= {
            "loss_supervised": supervised,
            "loss_unsupervised": unsupervised,
            "discrepancy": discrepancy(*_labelled.classifiers(labelled)).mean(),
            "unlabelled_discrepancy": apart.mean(),
            "l1": _l1(labelled),
            "unlabelled_l1": _l1(unlabelled),
        }
        return supervised + unsupervised, Aux(stats, state.memory, metrics)

    half = config.train.steps / 2
    return Method(
        updates=(Update(classify), Update(push)),
        views=_labelled.outlier_view(config),
        init_memory=lambda: {"accuracy_before": jnp.zeros((), jnp.float32)},
        separable=False,  # the hinge is on the mean over the whole batch
        classes=config.head.outputs,
        warn=lambda metrics: _warn(metrics, half),
    )


def _l1(outputs: Outputs) -> Array:
    """Section 3.5, mean over images of sum_k |p1 - p2|, what the score `l1_discrepancy` is."""
    first, second = map(jax.nn.softmax, _labelled.classifiers(outputs))
    return jnp.abs(first - second).sum(-1).mean()


def _warn(metrics: dict[str, float], half: float) -> list[str]:
    """What says that fine-tuning does not do what it is for; metrics of step B end in _1."""
    inside, mixed = metrics["discrepancy_1"], metrics["unlabelled_discrepancy_1"]
    now, before = metrics["accuracy"], metrics["accuracy_before"]
    found = []
    if metrics["step"] > half and mixed <= inside:
        found.append(
            "the classifiers differ no more on unlabelled images than on labelled ones (mean"
            f" discrepancy {mixed:.3g} and {inside:.3g}): fine-tune for longer, lower optim.lr, or"
            " see whether data.auxiliary holds images of other classes at all"
        )
    if now < FALLEN * before:
        found.append(
            "the first classifier forgets the classes"
            f" (accuracy {100 * now:.1f} %, {100 * before:.1f} % at the first step of fine-tuning;"
            " the paper loses 5 points): lower optim.lr, the paper's .1 suits its network, or"
            " method.margin"
        )
    return found


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    _labelled.check_auxiliary(config)
    head, margin = config.head, config.method.margin
    if head.name not in CLASSIFIERS:
        raise ValueError(f"head.name {head.name!r}: mcd needs {' or '.join(CLASSIFIERS)}")
    if head.second_outputs != head.outputs:
        raise ValueError(
            f"head.second_outputs = {head.second_outputs}: mcd needs two classifiers of the same"
            f" classes; set it to head.outputs, {head.outputs}, in the pre-training stage too"
        )
    most = math.log(head.outputs)
    if not 0 < margin < most:
        raise ValueError(
            f"method.margin = {margin:g}: use more than 0 and less than ln K = {most:.4f}, the most"
            f" that the entropies of K = {head.outputs} classes differ by"
        )
