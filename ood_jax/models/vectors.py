"""Networks of vectors as pure functions: the map of a teacher's features, and CLUB's q."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ood_jax.models.feature_map import FeatureMap
from ood_jax.models.gaussian_mlp import GaussianMLP, far_gaussian, near_gaussian
from ood_jax.types import Array, PyTree


class Map(NamedTuple):
    """init: (key, x [B, E]) -> (params, stats). apply: (params, stats, x) -> (y [B, D], stats).

    As training has it: by the batch's statistics.
    """

    init: Callable[[jax.Array, Array], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]]


class Gaussian(NamedTuple):
    """init: (key, x [B, D]) -> params. apply: (params, x) -> mean and log-variance, [B, E] each."""

    init: Callable[[jax.Array, Array], PyTree]
    apply: Callable[[PyTree, Array], tuple[Array, Array]]


def feature_map(outputs: int) -> Map:
    """A teacher's features -> [B, outputs], see FeatureMap."""
    module = FeatureMap(outputs)

    def init(key: jax.Array, x: Array) -> tuple[PyTree, PyTree]:
        variables = module.init(key, x, train=False)
        return variables["params"], variables["batch_stats"]

    def apply(params: PyTree, stats: PyTree, x: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        mapped, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return mapped, updated["batch_stats"]

    return Map(init, apply)


def gaussian(kind: str, inputs: int, outputs: int, hidden: int) -> Gaussian:
    """q of x [B, inputs] over y [B, outputs], as OAML has it for `near` or for `far` outliers.

    Raises:
      ValueError: a layer would have no units.
    """
    near: GaussianMLP = near_gaussian(outputs, hidden)
    module = near if kind == "near" else far_gaussian(inputs, outputs, hidden)

    def init(key: jax.Array, x: Array) -> PyTree:
        return module.init(key, x)["params"]

    def apply(params: PyTree, x: Array) -> tuple[Array, Array]:
        mean, log_variance = module.apply({"params": params}, x)
        return jnp.asarray(mean), jnp.asarray(log_variance)

    return Gaussian(init, apply)
