"""Outputs.stages: how a trunk hands out what is in it, beside the features that it returns."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ood_jax.types import Array

COLLECTION = "intermediates"  # the one that Linen leaves out of a network's variables
_NAME = "stages"


def sow_stage(trunk: nn.Module, x: Array) -> None:
    """Hands out the activations [B, ..., C] of one stage, in the order of the calls."""
    trunk.sow(COLLECTION, _NAME, x.astype(jnp.float32))


def sown_stages(collected: Mapping[str, Any]) -> tuple[Array, ...]:
    """What the module called trunk has handed out, from the collections that `apply` returns."""
    return collected.get(COLLECTION, {}).get("trunk", {}).get(_NAME, ())
