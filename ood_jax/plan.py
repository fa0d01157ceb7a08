"""What a scoring run needs, opened and checked before any compute."""

import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import models, needs, openood, scorers, sharding
from ood_jax.checkpoint import Restored
from ood_jax.config import named_sources
from ood_jax.data.sources import Source, cut, open_source
from ood_jax.data.union import named
from ood_jax.place import kind, under
from ood_jax.types import Net, Scorer

BASELINES = ("pixels", "untrained")
# In-distribution sets, and the OOD set that hyperparameters are chosen on.
TRAIN, TEST, CALIBRATION, VALIDATION = "train", "test", "calibration", "validation"
OWN = (TRAIN, TEST, CALIBRATION, VALIDATION)
FITTED = (TRAIN, CALIBRATION, VALIDATION)  # of these no detection is measured
CALIBRATED = 1000  # train images that set the threshold where the config names no others


class Plan(NamedTuple):
    """What will be scored, all of it checked.

    sets: those of OWN and the OOD sets, by name. groups: near and far, names of OOD sets. fields:
    of Features, that the scorers read. shapes: of the network's (params, stats). scorers: by name,
    the first is the run's own. not_scored: those of "all" that cannot run, and why.
    """

    sets: dict[str, Source]
    groups: dict[str, tuple[str, ...]]
    net: Net
    mesh: Mesh
    fields: tuple[str, ...]
    shapes: Any
    scorers: dict[str, Scorer]
    not_scored: dict[str, str]


def check(config: ConfigDict, ood: dict[str, str] | None = None, *, tune: bool = False) -> Plan:
    """Opens all sets and checks the scorers; no compute. `ood`: these instead of the config's.

    tune: hyperparameters will be chosen, so an OOD validation set must be there.

    Raises:
      ValueError: in one line, whatever is wrong.
    """
    sets, groups = opened(config, ood, tune=tune)
    mesh = scoring_mesh(config)
    net = models.build(config)
    shapes = jax.eval_shape(lambda: models.init_params(net, config))
    network = needs.Network(config, net, shapes)
    needs.check_feature(network)
    usable, not_scored = _usable(network, mesh, sets[TRAIN].read_labels is not None)
    fields = needs.fields(network, usable.values())
    return Plan(sets, groups, net, mesh, fields, shapes, usable, not_scored)


def opened(
    config: ConfigDict, ood: dict[str, str] | None = None, *, tune: bool = False
) -> tuple[dict[str, Source], dict[str, tuple[str, ...]]]:
    """All sets by name, and which of the OOD sets are near and far; arguments as `check`'s.

    Raises:
      ValueError: in one line, whatever is wrong with a set or a number below `score`.
    """
    outside, groups = _outside(config, ood)
    sets = fitted_sets(config)
    own = {TEST: _benchmark(config).test if config.score.benchmark else config.data.test}
    if tune:
        own[VALIDATION] = _validation(config, outside)
    for name, spec in (own | outside).items():
        sets[name] = open_source(spec, root=config.data.root)
    _check_numbers(config, sets[TRAIN])
    return sets, groups


def scoring_mesh(config: ConfigDict) -> Mesh:
    """The run's own number of devices, as far as there are so many here."""
    return sharding.make_mesh(min(config.train.devices, len(jax.devices())))


def fitted_sets(config: ConfigDict) -> dict[str, Source]:
    """The set that scores are fitted on and the one that sets their thresholds; apart.

    Without a source for the latter: the last tenth of the train set, at most CALIBRATED images.

    Raises:
      ValueError: what `open_source` refuses; a train set too small to be split.
    """
    train = open_source(config.data.train, root=config.data.root)
    calibration = config.score.calibration
    if config.score.benchmark and not calibration:
        calibration = _benchmark(config).calibration
    if calibration:
        return {TRAIN: train, CALIBRATION: open_source(calibration, root=config.data.root)}
    if len(train) < 2:
        raise ValueError(
            f"data.train = {config.data.train!r} has one image: give two or more, so that one can"
            " set the threshold, or name score.calibration"
        )
    count = max(1, min(CALIBRATED, len(train) // 10))
    parts = {TRAIN: f"[:-{count}]", CALIBRATION: f"[-{count}:]"}
    return {name: cut(train, part) for name, part in parts.items()}


def _benchmark(config: ConfigDict) -> openood.Benchmark:
    name, root = config.score.benchmark, config.data.root
    found = openood.benchmark(name)
    lists = under(root, openood.LISTS)
    if kind(lists) != "folder":
        raise ValueError(
            f"score.benchmark = {name!r} reads OpenOOD's image lists, but there is no {lists}: set"
            f" data.root, now {root!r}, to OpenOOD's `data` folder"
        )
    return found


def _outside(
    config: ConfigDict, ood: dict[str, str] | None
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """(OOD set -> source, group -> OOD sets), of `ood`, else of the config or its benchmark."""
    c = config.score
    near, far = named_sources(c.near), named_sources(c.far)
    if c.benchmark:
        named = openood.benchmark(c.benchmark)
        if near or far:
            raise ValueError(
                f"score.benchmark = {c.benchmark!r} brings its own near and far sets: empty the"
                " others with --config.score.near= --config.score.far="
            )
        near, far = named_sources(named.near), named_sources(named.far)
    if both := sorted(near.keys() & far.keys()):
        raise ValueError(f"the set {both[0]!r} is in score.near and in score.far: keep one")
    outside = near | far if ood is None else ood
    for name in outside:
        if name in OWN or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"an OOD set cannot be called {name!r}: use letters, digits and _.+-,"
                f" and none of {', '.join(OWN)}"
            )
    if ood is not None:
        return outside, {"near": (), "far": ()}
    return outside, {"near": tuple(near), "far": tuple(far)}


def _validation(config: ConfigDict, outside: dict[str, str]) -> str:
    spec = config.score.validation
    if config.score.benchmark and not spec:
        spec = _benchmark(config).validation
    if not spec:
        raise ValueError(
            "--tune needs OOD images that are in no test set: set score.validation to a source"
        )
    ours = [part for _, part in named(spec)]
    for name, other in outside.items():
        theirs = [part for _, part in named(other)]
        if any(one == two or one.startswith(f"{two}[") for one in ours for two in theirs):
            raise ValueError(
                f"score.validation = {spec!r} lies in the OOD test set {name} = {other!r}: never"
                " choose on what is tested; cut the test set, as in [1000:]"
            )
    return spec


def _check_numbers(config: ConfigDict, train: Source) -> None:
    c = config.score
    if unknown := [name for name in c.baselines if name not in BASELINES]:
        raise ValueError(f"score.baselines: no {unknown[0]!r}; there are {', '.join(BASELINES)}")
    if train.read_labels is not None and not 1 <= c.knn <= len(train):
        count = len(train)
        raise ValueError(f"score.knn = {c.knn}: the bank has {count} images; use 1 to {count}")
    for key in ("batch", "block", "bank_memory"):
        if c[key] < 1:
            raise ValueError(f"score.{key} = {c[key]}: use 1 or more")
    for key in ("temperature", "knn_temperature", "energy_temperature", "odin_temperature"):
        if not c[key] > 0:
            raise ValueError(f"score.{key} = {c[key]}: use a number above 0")
    if not 0 < c.keep < 1:
        raise ValueError(f"score.keep = {c.keep}: use a share between 0 and 1, such as 0.95")
    if c.bootstrap < 0:
        raise ValueError(f"score.bootstrap = {c.bootstrap}: use 0 (none) or more, such as 1000")


def _usable(
    network: needs.Network, mesh: Mesh, labelled: bool
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Scorers by name, and of those that "all" named in passing: why they cannot run."""
    score = network.config.score
    usable, not_scored = {}, {}
    for name in scorers.expand(tuple(score.scorers)):
        scorer = scorers.build(name, score, mesh)
        reason = needs.lacking(network, scorer, labelled)
        if reason is None:
            usable[name] = scorer
        elif name in score.scorers:
            raise ValueError(f"scorer {name} needs {reason}")
        else:
            not_scored[name] = f"needs {reason}"
    return usable, not_scored


def check_model(shapes: Any, restored: Restored, workdir: str) -> None:
    """Refuses a checkpoint that is not of the config's network; shapes: of its (params, stats).

    Raises:
      ValueError: naming the first array that differs.
    """
    have = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path((restored.params, restored.stats))
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path)
        if have.get(name) != leaf.shape:
            raise ValueError(
                f"{workdir} holds a checkpoint of another model: {name} is"
                f" {have.get(name, 'absent')} there, {leaf.shape} by the config"
            )
