"""What a scoring run needs, opened and checked before any compute."""

import re
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ood_jax import models, scorers
from ood_jax.checkpoint import Restored
from ood_jax.config import named_sources
from ood_jax.data.sources import Source, open_source
from ood_jax.types import Net

BASELINES = ("pixels", "untrained")
TRAIN, TEST = "train", "test"  # names of the in-distribution sets among the others


class Plan(NamedTuple):
    """What will be scored, all of it checked.

    sets: train, test and the OOD sets, by name. groups: near and far, names of OOD sets. fields: of
    Features, that the scorers read. shapes: of the network's (params, stats).
    """

    sets: dict[str, Source]
    groups: dict[str, tuple[str, ...]]
    net: Net
    fields: tuple[str, ...]
    shapes: Any


def check(config: ConfigDict, ood: dict[str, str] | None = None) -> Plan:
    """Opens all sets and checks the scorers; no compute. `ood`: these instead of the config's.

    Raises:
      ValueError: in one line, whatever is wrong.
    """
    near, far = named_sources(config.score.near), named_sources(config.score.far)
    if both := sorted(near.keys() & far.keys()):
        raise ValueError(f"the set {both[0]!r} is in score.near and in score.far: keep one")
    specs = near | far if ood is None else ood
    for name in specs:
        if name in (TRAIN, TEST) or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"an OOD set cannot be called {name!r}: use letters, digits and _.+-,"
                f" and neither {TRAIN} nor {TEST}"
            )
    specs = {TRAIN: config.data.train, TEST: config.data.test, **specs}
    sets = {name: open_source(spec, root=config.data.root) for name, spec in specs.items()}
    _check_numbers(config, len(sets[TRAIN]))
    net, fields, shapes = _check_network(config)
    groups: dict[str, tuple[str, ...]] = {"near": tuple(near), "far": tuple(far)}
    if ood is not None:
        groups = dict.fromkeys(groups, ())
    return Plan(sets, groups, net, fields, shapes)


def _check_numbers(config: ConfigDict, train: int) -> None:
    c = config.score
    if not c.scorers or len(set(c.scorers)) < len(c.scorers):
        raise ValueError(f"score.scorers = {tuple(c.scorers)}: name one or more, each once")
    if unknown := [name for name in c.baselines if name not in BASELINES]:
        raise ValueError(f"score.baselines: no {unknown[0]!r}; there are {', '.join(BASELINES)}")
    if not 1 <= c.knn <= train:
        raise ValueError(f"score.knn = {c.knn}: data.train has {train} images; use 1 to {train}")
    for key in ("batch", "block"):
        if c[key] < 1:
            raise ValueError(f"score.{key} = {c[key]}: use 1 or more")
    for key in ("temperature", "knn_temperature"):
        if not c[key] > 0:
            raise ValueError(f"score.{key} = {c[key]}: use a number above 0")


def _check_network(config: ConfigDict) -> tuple[Net, tuple[str, ...], Any]:
    for name in config.score.scorers:
        scorers.build(name, config.score)
    read = [config.score.feature]
    read += [field for name in config.score.scorers for field in scorers.fields(name, config.score)]
    fields = tuple(dict.fromkeys(read))
    net = models.build(config)
    params, stats = shapes = jax.eval_shape(lambda: models.init_params(net, config))
    size = config.model.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    outputs = jax.eval_shape(
        lambda p, s, x: net.apply(p, s, x, train=False)[0], params, stats, images
    )
    have = [name for name, value in vars(outputs).items() if value is not None]
    for field in fields:
        if field not in have:
            raise ValueError(f"score.feature = {field!r}: this network has {', '.join(have)}")
    return net, fields, shapes


def check_model(plan: Plan, restored: Restored, workdir: str) -> None:
    """Refuses a checkpoint that is not of the plan's network.

    Raises:
      ValueError: naming the first array that differs.
    """
    have = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path((restored.params, restored.stats))
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(plan.shapes):
        name = jax.tree_util.keystr(path)
        if have.get(name) != leaf.shape:
            raise ValueError(
                f"{workdir} holds a checkpoint of another model: {name} is"
                f" {have.get(name, 'absent')} there, {leaf.shape} by the config"
            )
