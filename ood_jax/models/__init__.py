"""Networks: a trunk named by `config.model.name` and a head by `config.head.name`, as a Net."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.config import import_part
from ood_jax.models.heads import head, last_layer
from ood_jax.models.stages import COLLECTION, sown_stages
from ood_jax.types import Array, Net, Outputs, PyTree

DTYPES = ("float32", "bfloat16")


class _Network(nn.Module):
    trunk: nn.Module
    head: nn.Module | None

    def __call__(self, images: Array, train: bool) -> Outputs:
        features = self.trunk(images, train)
        return Outputs(features) if self.head is None else self.head(features, train)


def build(config: ConfigDict) -> Net:
    """The Net that `config.model` and `config.head` describe; parameters under trunk/ and head/.

    Raises:
      ValueError: unknown name or numbers that make no network, before any compute.
    """
    if config.model.dtype not in DTYPES:
        raise ValueError(f"model.dtype {config.model.dtype!r}: use {' or '.join(DTYPES)}")
    for key in ("width", "depth", "heads", "patch", "stride", "image_size"):
        if config.model[key] < 1:
            raise ValueError(f"model.{key} = {config.model[key]}: use 1 or more")
    module = import_part(config.model.name, "ood_jax.models", ("trunk",))
    network = _Network(module.trunk(config.model), head(config.head, config.model.dtype))

    def init(key: jax.Array, inputs: Array) -> tuple[PyTree, PyTree]:
        variables = network.init(key, inputs, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(
        params: PyTree, stats: PyTree, inputs: Array, *, train: bool, key: Any = None
    ) -> tuple[Outputs, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        rngs, mutable = ({"noise": key}, ["batch_stats"]) if train else ({}, [])
        outputs, updated = network.apply(
            variables, inputs, train=train, rngs=rngs, mutable=[*mutable, COLLECTION]
        )
        outputs = outputs.replace(stages=sown_stages(updated))
        return outputs, updated.get("batch_stats", stats) if train else stats

    return Net(init, apply, last_layer(config.head))


def init_params(net: Net, config: ConfigDict, shardings: Any = None) -> tuple[PyTree, PyTree]:
    """The untrained (params, stats) that `config.seed` stands for, laid out as `shardings` says."""
    size = config.model.image_size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    init = jax.jit(net.init, out_shardings=shardings)
    return init(jax.random.key(config.seed), images)
