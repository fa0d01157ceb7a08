"""Features of sets under one network, kept in W/features/ for the next time."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import features, models
from ood_jax.atomic import check_writable
from ood_jax.cache import cached, digest, read, stamp
from ood_jax.checkpoint import Restored
from ood_jax.config import flat, to_json
from ood_jax.data.source import Source
from ood_jax.features import Extracted
from ood_jax.place import place
from ood_jax.plan import TRAIN, check_model, scoring_mesh
from ood_jax.types import Extra, Net, PyTree


class Network(NamedTuple):
    """A network with its arrays, and what is wanted of it.

    fields: of Features. extras: what scores need beside. suffix: of files and labels, such as
    "@untrained". folder: W/features; None = nothing is kept.
    """

    config: ConfigDict
    mesh: Mesh
    net: Net
    params: PyTree
    stats: PyTree
    fields: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    suffix: str = ""
    folder: epath.Path | None = None


# What of a config changes no number of a network, but how it is run.
OF_THE_RUN = (
    *("data.root", "data.workers", "data.memory", "data.timeout"),
    *("score.batch", "train.devices"),
)


def run_as(config: ConfigDict, other: ConfigDict) -> ConfigDict:
    """`config`, a network's, with data and devices where and as `other`'s run has them."""
    config, known = config.copy_and_resolve_references(), flat(other)
    config.update_from_flattened_dict({key: known[key] for key in OF_THE_RUN})
    return config


def of_checkpoint(
    restored: Restored,
    workdir: epath.PathLike,
    *,
    config: ConfigDict | None = None,
    net: Net | None = None,
) -> Network:
    """The network of a checkpoint of `workdir`, of which nothing is wanted and nothing kept yet.

    config: in place of the checkpoint's, for other keys of `score` or another data.root. net: of
    another network with the same model and head, so that both are compiled once.

    Raises:
      ValueError: the checkpoint is of another network.
    """
    config = restored.config if config is None else config
    net = models.build(config) if net is None else net
    shapes = jax.eval_shape(lambda: models.init_params(net, config))
    check_model(shapes, restored, str(workdir))
    return Network(config, scoring_mesh(config), net, restored.params, restored.stats)


def folder_in(workdir: epath.PathLike) -> epath.Path | None:
    """W/features; None where it cannot be written, as in another user's run."""
    folder = place(workdir) / "features"
    try:
        check_writable(folder)
    except ValueError:
        return None
    return folder


def extract(network: Network, sets: dict[str, Source]) -> dict[str, Extracted]:
    """The features of all `sets`, by name: from W/features/NAME.npz, or computed and kept there."""
    arrays = digest((network.params, network.stats))
    out = {}
    for name, source in sets.items():
        extras = _extras(network, name)

        def compute(
            source: Source = source, name: str = name, extras: tuple[Extra, ...] = extras
        ) -> dict[str, np.ndarray]:
            extracted = features.extract(
                network.net,
                network.params,
                network.stats,
                source,
                config=network.config,
                mesh=network.mesh,
                fields=network.fields,
                extras=extras,
                label=f"features {name}{network.suffix}",
            )
            return features.pack(extracted)

        path = _path(network, name)
        held = cached(path, meta(network._replace(extras=extras), source, arrays), compute, serves)
        out[name] = features.with_last_layer(features.unpack(held), network.net, network.params)
    return out


def stored(network: Network, name: str) -> Extracted | None:
    """What an earlier run kept of the set `name`, whatever became of the set; None = nothing."""
    path = _path(network, name)
    if path is None:
        return None
    network = network._replace(extras=_extras(network, name))
    want = _of_network(network, digest((network.params, network.stats)))
    held = read(path, lambda theirs: serves({key: theirs[key] for key in want}, want))
    if held is None:
        return None
    return features.with_last_layer(features.unpack(held), network.net, network.params)


def _path(network: Network, name: str) -> epath.Path | None:
    return None if network.folder is None else network.folder / f"{name}{network.suffix}.npz"


def _extras(network: Network, name: str) -> tuple[Extra, ...]:
    """What is computed of the images of the set `name`."""
    if name != TRAIN:
        return network.extras
    wanted = (extra if extra.train is True else extra.train for extra in network.extras)
    return tuple(extra for extra in wanted if isinstance(extra, Extra))


def serves(theirs: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Is all that is wanted there, and of the same images and network?"""

    def rest(meta: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in meta.items() if key not in ("fields", "extras")}

    return (
        rest(theirs) == rest(wanted)
        and set(wanted["fields"]) <= set(theirs["fields"])
        and set(wanted["extras"]) <= set(theirs["extras"])
    )


def meta(network: Network, source: Source, arrays: str) -> dict[str, Any]:
    """What features depend on: the set, how its images are shown, the network and its arrays."""
    root = network.config.data.root
    of_source = {
        "source": source.spec,
        "root": root,
        "images": len(source),
        "stamp": stamp(source.spec, root),
    }
    return of_source | _of_network(network, arrays)


def _of_network(network: Network, arrays: str) -> dict[str, Any]:
    parts = json.loads(to_json(network.config))
    return {
        "view": {key: parts["data"][key] for key in ("size", "mean", "std")},
        "network": {"model": parts["model"], "head": parts["head"], "arrays": arrays},
        "fields": list(network.fields),
        "extras": [extra.name for extra in network.extras],
    }
