"""Training: what a run is made of, its state, and its step over the mesh.

The step itself is step.py, the loop around it loop.py.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import layout, optim, sharding
from ood_jax.config import method_module
from ood_jax.data.order import check_balanced
from ood_jax.data.source import check_classes
from ood_jax.data.sources import Source, open_source
from ood_jax.data.vectors import OF_IMAGES, OUTLIERS
from ood_jax.models import build as build_model
from ood_jax.models import init_params
from ood_jax.start import STAGE, load_start, untrained
from ood_jax.step import Metrics, make_step, trained
from ood_jax.types import Batch, Method, Net, PyTree, TrainState, Vectors
from ood_jax.vectors import described


class Run(NamedTuple):
    """What a run is made of, all of it checked.

    start: (params, stats) of config.model.weights that take the place of untrained ones; None =
    there are none, or an earlier stage has yet to make them (see `started`). vectors: what it reads
    beside images; shapes where an earlier stage has yet to make them (see vectors.loaded).
    """

    config: ConfigDict
    mesh: Mesh
    train: Source
    auxiliary: Source | None
    net: Net
    method: Method
    optimisers: tuple[optax.GradientTransformationExtraArgs, ...]
    rates: optim.Schedules
    start: tuple[PyTree, PyTree] | None = None
    vectors: Vectors = Vectors()


def prepare(config: ConfigDict, earlier: Mapping[str, Run] = MappingProxyType({})) -> Run:
    """Opens and checks everything that `config` names; no compute yet.

    earlier: the stages before it, by name.

    Raises:
      ValueError: whatever is wrong with the config or its data, in one line.
    """
    mesh = sharding.make_mesh(config.train.devices, config.mesh.model)
    if jax.process_count() > 1 and mesh.size < len(jax.devices()):
        raise ValueError(
            f"train.devices = {mesh.size}: several processes use all their {len(jax.devices())}"
            " devices; set it to 0"
        )
    sharding.check_batch(mesh, config.train.batch, config.train.accumulate)
    train = open_source(config.data.train, root=config.data.root)
    auxiliary = None
    if config.data.auxiliary:
        auxiliary = open_source(config.data.auxiliary, root=config.data.root)
    config = resolved(config, len(train))
    net = build_model(config)
    method = method_module(config.method.name).build(config, net)
    if config.train.knn_every:
        _check_judged(config, train, method)
    if config.train.accumulate > 1 and not method.separable:
        raise ValueError(
            f"train.accumulate = {config.train.accumulate}: the loss of {config.method.name} needs"
            " the whole batch at once; use 1"
        )
    if method.classes:
        check_classes(train, method.classes, config.method.name)
    if config.data.balanced:
        check_balanced(train.labels, method.classes)
    if method.maker is not None:
        method.maker.check(len(train), train.labels)
    reads = described(config, method.reads, train, earlier)
    optimisers = tuple(optim.build(config, trains) for trains in trained(method))
    rates = optim.schedules(config)
    if not method.updates:
        with config.unlocked():
            config.train.steps = 0
    run = Run(config, mesh, train, auxiliary, net, method, optimisers, rates, vectors=reads)
    if config.mesh.rules or config.mesh.model > 1 or method.reads or config.optim.multipliers:
        abstract_state(run)  # refuses rules that do not fit, vectors that make no network
    weights = config.model.weights
    return started(run, weights) if weights and not weights.startswith(STAGE) else run


def started(run: Run, weights: str) -> Run:
    """`run` with what it begins with, from the file or workdir `weights`.

    Raises:
      ValueError: see `load_start`.
    """
    start = load_start(weights, run.config, run.net, head=not run.method.updates)
    if (fresh := untrained(run.config, run.net, start)) and jax.process_index() == 0:
        print(f"begins with {weights}, but for {', '.join(fresh)}", file=sys.stderr)
    return run._replace(start=start)


def _check_judged(config: ConfigDict, train: Source, method: Method) -> None:
    if not method.images:
        raise ValueError(
            f"train.knn_every: {config.method.name} trains no network of images; set it to 0"
        )
    if train.labels is None or open_test(config).labels is None:
        raise ValueError(
            "train.knn_every: kNN accuracy needs labels in data.train and data.test; set it to 0"
        )


def open_test(config: ConfigDict) -> Source:
    """The in-distribution test set.

    Raises:
      ValueError: what is wrong with its source.
    """
    return open_source(config.data.test, root=config.data.root)


def resolved(config: ConfigDict, images: int) -> ConfigDict:
    """`config` with train.steps and train.steps_per_epoch worked out from the set's size.

    Raises:
      ValueError: counts below 1.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    for key in ("batch", "accumulate", "log_every", "checkpoint_every", "keep_last"):
        if train[key] < 1:
            raise ValueError(f"train.{key} = {train[key]}: use 1 or more")
    if train.epochs <= 0 or train.steps < 0 or train.steps_per_epoch < 0:
        raise ValueError(
            f"train.epochs {train.epochs:g}, steps {train.steps}, steps_per_epoch"
            f" {train.steps_per_epoch:g}: use epochs above 0, and the others 0 or more"
        )
    squeezed = train.steps / train.epochs or float(max(images // train.batch, 1))
    train.steps_per_epoch = train.steps_per_epoch or squeezed
    train.steps = train.steps or max(round(train.epochs * train.steps_per_epoch), 1)
    config.lock()
    return config


def abstract_state(run: Run) -> TrainState:
    """Shapes, types and places (config.mesh.rules) of the state of `run`, without any compute.

    Raises:
      ValueError: a rule that does not fit the state.
    """
    state = jax.eval_shape(lambda: _first_state(run, *_init(run)))
    rules = layout.read_rules(run.config.mesh.rules)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        layout.state_shardings(run.mesh, state, rules),
    )


def init_state(run: Run) -> TrainState:
    """The state at step 0, made where it lies on the mesh: no device ever has all of it."""
    places = layout.places(abstract_state(run))
    params, stats = _init(run, (places.params, places.stats))
    if run.start is not None:
        params = sharding.place(_merged(params, run.start[0]), places.params)
        stats = sharding.place(_merged(stats, run.start[1]), places.stats)
    return jax.jit(partial(_first_state, run), out_shardings=places)(params, stats)


def _init(run: Run, places: Any = None) -> tuple[PyTree, PyTree]:
    if run.method.init is None:
        return init_params(run.net, run.config, places)
    init = jax.jit(run.method.init, out_shardings=places)
    return init(jax.random.key(run.config.seed), _one_row(run))


def _one_row(run: Run) -> Batch:
    """A batch as the method's `init` sees it: zeros."""
    size, vectors = run.config.model.image_size, run.vectors._asdict()
    named = {**OF_IMAGES, **{name: name for name in OUTLIERS}}
    have = {name: vectors[field] for name, field in named.items() if vectors[field] is not None}
    rows = {name: jnp.zeros((1, array.shape[1])) for name, array in have.items()}
    return {"image": jnp.zeros((1, size, size, 3))} | rows


def _first_state(run: Run, params: PyTree, stats: PyTree) -> TrainState:
    method = run.method
    teacher = None
    if method.has_teacher:
        copy = method.teacher_init or (lambda p, s: {"params": p, "stats": s})
        teacher = copy(params, stats)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        teacher=teacher,
        memory=method.init_memory(),
        opt=tuple(optimiser.init(params) for optimiser in run.optimisers),
    )


def _merged(tree: PyTree, part: PyTree) -> PyTree:
    """Nested dictionaries: `tree` with the leaves that `part` has."""
    if not isinstance(part, dict):
        return part
    return tree | {key: _merged(tree.get(key), value) for key, value in part.items()}


def jitted_step(run: Run) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`make_step` of a run over its mesh; the new state lies as the old one, in its memory.

    How arrays meet that lie differently is XLA's to choose (benchmarks/collectives.py shows it).
    """
    places = layout.places(abstract_state(run))
    step = make_step(
        run.method,
        run.optimisers,
        run.rates,
        seed=run.config.seed,
        accumulate=run.config.train.accumulate,
    )
    return jax.jit(
        step,
        in_shardings=(places, sharding.batch_sharding(run.mesh)),
        out_shardings=(places, sharding.replicated(run.mesh)),
        donate_argnums=0,
    )
