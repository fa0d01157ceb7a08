"""SimCLR: Chen et al. 2020, "A simple framework for contrastive learning of visual
representations".

Two random views of an image must find each other among all views of the batch (Eq. 1, NT-Xent).
Needs no labels.
"""

from typing import Any

from ml_collections import ConfigDict

from ood_jax.losses.contrastive import nt_xent
from ood_jax.methods import _pairs
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

DEFAULTS: dict[str, Any] = dict(temperature=0.5, block=_pairs.BLOCK, **_pairs.VIEWS)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _pairs.check_contrast(config)
    rows = _pairs.row_map(config)

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        z, _, stats = _pairs.forward(net, params, state.stats, batch["pair"], key)
        value = nt_xent(z, temperature=config.method.temperature, rows=rows).mean()
        return value, Aux(stats, state.memory, _pairs.monitors(z, rows))

    return Method(
        updates=(Update(loss),),
        views=_pairs.pair_views(config),
        separable=False,
        warn=_pairs.warnings,
    )
