"""What a run begins with in place of an untrained network: config.model.weights."""

import jax
from ml_collections import ConfigDict

from ood_jax.checkpoint import restore_for_scoring
from ood_jax.models import init_params
from ood_jax.models.weights import Arrays, flat_arrays, load_weights, nested_arrays, some
from ood_jax.place import holding, kind, place
from ood_jax.types import Net, PyTree

STAGE = "stage:"  # before the name of an earlier stage of the same run


def load_start(weights: str, config: ConfigDict, net: Net, *, head: bool) -> tuple[PyTree, PyTree]:
    """The (params, stats) of `net` that `weights` has, on the host: the trunk, and of the head ...

    Args:
      weights: a workdir, whose newest checkpoint's teacher (else student) is read, or a file of
        PyTorch weights. head: True = ... all, so that nothing is left to train; False = ... of a
        workdir what has the same name and shape, of a file nothing.

    Raises:
      ValueError: a file or workdir that cannot be read, or of another network.
    """
    path = place(weights)
    found_as = kind(path)
    if not found_as:
        raise ValueError(
            f"model.weights = {weights!r}: no such file or folder; give the workdir of a run,"
            f" {STAGE}NAME of an earlier stage, or a .safetensors, .pth, .pt or .bin file"
        )
    if found_as != "folder":
        return load_weights(config, net, head=head)
    if not holding(path, "checkpoints"):
        raise ValueError(f"model.weights = {weights!r}: no checkpoint in it; train that run first")
    restored = restore_for_scoring(weights)
    found = flat_arrays({"params": restored.params, "stats": restored.stats})
    shared = taken(found, _shapes(config, net), weights, head=head)
    return nested_arrays(shared, "params"), nested_arrays(shared, "stats")


def untrained(config: ConfigDict, net: Net, start: tuple[PyTree, PyTree]) -> list[str]:
    """Names of the parameters of `net` that `start` does not have."""
    have = flat_arrays({"params": start[0]})
    wanted = [name for name in _shapes(config, net) if name.startswith("params/")]
    return [name.removeprefix("params/") for name in wanted if name not in have]


def check_start(name: str, before: tuple[ConfigDict, Net], after: tuple[ConfigDict, Net]) -> None:
    """Could `after`'s network begin with what `before`'s stage, called `name`, will have learnt?

    Raises:
      ValueError: their trunks differ.
    """
    taken(_shapes(*before), _shapes(*after), f"{STAGE}{name}", head=False)


def taken(found: Arrays, wanted: Arrays, where: str, *, head: bool) -> Arrays:
    """Those of `found` that `wanted` has under the same name and in the same shape.

    Raises:
      ValueError: a part of the trunk is not among them; with `head` a part of the head neither.
    """
    shared = {
        name: found[name]
        for name, x in wanted.items()
        if name in found and found[name].shape == x.shape
    }
    lacking = [name for name in wanted if name not in shared and (head or "/head/" not in name)]
    if lacking:
        raise ValueError(
            f"model.weights = {where!r} is of another network: it lacks {some(lacking)}, or has"
            " another shape of it. Set model.* to its network"
        )
    return shared


def _shapes(config: ConfigDict, net: Net) -> Arrays:
    shapes = jax.eval_shape(lambda: init_params(net, config))
    return flat_arrays(dict(zip(("params", "stats"), shapes, strict=True)))
