"""A network's arrays from a file of published PyTorch weights, all or nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ood_jax.models import init_params
from ood_jax.models.torch_file import read_weights
from ood_jax.models.torch_names import FAMILIES, from_torch
from ood_jax.models.vit import interpolate_position
from ood_jax.types import Net, PyTree

POSITION = "params/trunk/position"
SHOWN = 3  # names of a kind in a message

Arrays = dict[str, Any]  # params/... or stats/... -> array, or its shape


def load_weights(config: ConfigDict, net: Net, *, head: bool = True) -> tuple[PyTree, PyTree]:
    """The (params, stats) of `net`, float32 on the host, from the file config.model.weights.

    A position table is resized to the grid of config.model.image_size as DINO's code does it. A
    head that the file has and the network has not is left out.

    Args:
      net: what `config` builds. head: False = the trunk alone, so that the trees have no "head".

    Raises:
      ValueError: a file that cannot be read; or, all in one: names that belong to no part of this
        network, parts that the file lacks, other shapes.
    """
    if config.model.name not in FAMILIES:
        raise ValueError(
            f"model.weights: PyTorch's names are known of {', '.join(FAMILIES)}, not of"
            f" model.name = {config.model.name!r}"
        )
    path = config.model.weights
    weights = read_weights(path)
    try:
        params, stats, unknown = from_torch(weights, FAMILIES[config.model.name])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shapes = jax.eval_shape(lambda: init_params(net, config))
    wanted = flat_arrays(dict(zip(("params", "stats"), shapes, strict=True)))
    if not head:
        wanted = {name: x for name, x in wanted.items() if "/head/" not in name}
    headless = not any("/head/" in name for name in wanted)
    found = {
        name: x
        for name, x in flat_arrays({"params": params, "stats": stats}).items()
        if not (headless and "/head/" in name)
    }
    if POSITION in found and POSITION in wanted:
        found[POSITION] = _resized(found[POSITION], wanted[POSITION].shape)
    _check(path, found, wanted, unknown)
    return nested_arrays(found, "params"), nested_arrays(found, "stats")


def _resized(position: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The table [1, 1 + m, D] for the grid of `shape`, [1, 1 + n, D], where both are squares."""
    if position.ndim != 3 or position.shape[::2] != shape[::2]:
        return position
    old, new = (round(max(count - 1, 0) ** 0.5) for count in (position.shape[1], shape[1]))
    if old == 0 or 1 + old**2 != position.shape[1]:
        return position
    return np.asarray(interpolate_position(jnp.asarray(position, jnp.float32), new, new))


def _check(path: str, found: Arrays, wanted: Arrays, unknown: list[str]) -> None:
    shared = found.keys() & wanted.keys()
    other = [name for name in sorted(shared) if found[name].shape != wanted[name].shape]
    problems = {
        "it has names that this network has no place for": [
            *unknown,
            *sorted(found.keys() - wanted.keys()),
        ],
        "it lacks": sorted(wanted.keys() - found.keys()),
        "its shapes are others": [
            f"{name} {list(found[name].shape)} instead of {list(wanted[name].shape)}"
            for name in other
        ],
    }
    texts = [f"{what}: {some(names)}" for what, names in problems.items() if names]
    if texts:
        raise ValueError(
            f"{path} is of another network. {'; '.join(texts)}. Set model.* and head.* to the"
            " file's network (configs/pretrained_knn.py has the published ones; head.name = none"
            " leaves a classifier out)"
        )


def some(names: list[str]) -> str:
    """The first few names of arrays, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name.removeprefix("params/") for name in names[:SHOWN]) + more


def flat_arrays(tree: PyTree) -> Arrays:
    """Leaves by the names of their paths, such as params/trunk/norm_1/scale."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested_arrays(arrays: Arrays, root: str) -> PyTree:
    """The tree below `root` of arrays named as `flat_arrays` names them, float32 on the host."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        first, *parents, leaf = name.split("/")
        if first == root:
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = np.asarray(value, np.float32)
    return tree
