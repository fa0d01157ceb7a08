"""CSI: Tack et al. 2020, "Novelty detection via contrastive learning on distributionally shifted
instances". Needs no labels.

An image turned by k times 90 degrees is another image, and so a negative of itself; a linear
classifier of the features tells by how much an image was turned (Eqs. 4-6). One shift is SimCLR.
The released code jitters colours in HSV; here as SimCLR.
"""

import math
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.contrastive import nt_xent
from ood_jax.methods import _pairs
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update
from ood_jax.views.crops import multi_view

DEFAULTS: dict[str, Any] = dict(
    temperature=0.5,
    shifts=4,  # rotations by 90 degrees, the first by none; 1 = none
    shift_weight=1.0,  # of the classifier's loss; 0 = no classifier
    block=_pairs.BLOCK,
    **_pairs.VIEWS,
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.second_outputs is the shifts.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m = config.method
    rows = _pairs.row_map(config)
    view = _pairs.view_of(config)
    classified = m.shifts > 1 and m.shift_weight > 0

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        z, outputs, stats = _pairs.forward(net, params, state.stats, batch["pair"], key)
        contrastive = nt_xent(z, temperature=m.temperature, rows=rows).mean()  # Eq. 4
        metrics = {"loss_contrastive": contrastive} | _pairs.monitors(z, rows)
        value = contrastive
        if classified:
            assert outputs.second_logits is not None  # _check wants them
            turns = jnp.tile(jnp.arange(m.shifts), len(z) // m.shifts)[:, None]
            shift, accuracy = _pairs.classified(outputs.second_logits, turns)  # Eq. 5
            value = contrastive + m.shift_weight * shift
            metrics |= {"loss_shift": shift, "shift_accuracy": accuracy}
        return value, Aux(stats, state.memory, metrics)

    def views(host: Batch, key: Array) -> Batch:
        views, data = (view,) * (2 * m.shifts), config.data
        drawn = multi_view(host["image"], host["index"], key, views, mean=data.mean, std=data.std)
        return {"pair": turned(drawn, m.shifts)}

    return Method(updates=(Update(loss),), views=views, separable=False, warn=_pairs.warnings)


def turned(views: Array, shifts: int) -> Array:
    """Two views of an image for each shift, those of shift k turned by k quarters.

    [B, 2 shifts, S, S, 3] -> [B shifts, 2, S, S, 3], an image's shifts beside one another. They are
    mirrored before they are turned, as in CSI's code: the other way round a mirrored quarter turn
    would pass for a turn the other way.
    """
    pairs = views.reshape(-1, shifts, 2, *views.shape[2:])
    each = [jnp.rot90(pairs[:, k], k, axes=(2, 3)) for k in range(shifts)]
    return jnp.stack(each, 1).reshape(-1, 2, *views.shape[2:])


def _check(config: ConfigDict) -> None:
    _pairs.check_contrast(config)
    m = config.method
    if not 1 <= m.shifts <= 4:
        raise ValueError(f"method.shifts = {m.shifts}: use 1 (none) to 4 (all quarter turns)")
    if not 0 <= m.shift_weight < math.inf:
        raise ValueError(f"method.shift_weight = {m.shift_weight}: use 0 (no classifier) or more")
    wanted = m.shifts if m.shifts > 1 and m.shift_weight else 0
    if config.head.second_outputs != wanted:
        raise ValueError(
            f"head.second_outputs = {config.head.second_outputs}: with method.shifts = {m.shifts}"
            f" and method.shift_weight = {m.shift_weight:g} use {wanted}"
        )
