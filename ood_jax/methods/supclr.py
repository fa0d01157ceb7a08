"""Supervised contrastive learning: Khosla et al. 2020 (SupCon), and CSI's form of it (SupCLR).

All views of an image's class are its positives. A linear classifier is trained beside on the
features, without moving them, as CSI's code does: it gives accuracy, and scores that read logits.
"""

from typing import Any

from ml_collections import ConfigDict

from ood_jax.losses.contrastive import supcon, supcon_with_self
from ood_jax.methods import _pairs
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

FORMS = {"supcon": supcon, "csi": supcon_with_self}

DEFAULTS: dict[str, Any] = dict(
    temperature=0.5,  # CSI's code has 0.07 where it reads labels
    form="supcon",  # supcon | csi: its official code counts each anchor among its own positives
    block=_pairs.BLOCK,
    **_pairs.VIEWS,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    contrast = FORMS[config.method.form]
    rows = _pairs.row_map(config)

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        z, outputs, stats = _pairs.forward(net, params, state.stats, batch["pair"], key)
        labels = batch["label"]
        contrastive = contrast(z, labels, temperature=config.method.temperature, rows=rows).mean()
        logits = _pairs.probe_logits(net, params, outputs.features)
        probe, accuracy = _pairs.classified(logits, labels[:, None])
        metrics = {"loss_contrastive": contrastive, "loss_probe": probe, "accuracy": accuracy}
        metrics |= _pairs.monitors(z, rows)
        return contrastive + probe, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(loss),),
        views=_pairs.pair_views(config),
        separable=False,
        classes=config.head.outputs,
        warn=_pairs.warnings,
    )


def _check(config: ConfigDict) -> None:
    _pairs.check_contrast(config)
    if config.method.form not in FORMS:
        raise ValueError(f"method.form = {config.method.form!r}: use {' or '.join(FORMS)}")
    if config.head.outputs < 2:
        raise ValueError(
            f"supclr learns from classes: head.outputs = {config.head.outputs}; use their number, 2"
            " or more"
        )
