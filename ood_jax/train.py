"""Training: what a run is made of, its state, and one step over the mesh (the loop is loop.py).

Read `make_step` first: views, gradients of each update, optimiser, teacher, memory.
"""

import sys
from collections.abc import Callable
from functools import partial
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
from ood_jax.models import build as build_model
from ood_jax.models import init_params
from ood_jax.start import STAGE, load_start, untrained
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update
from ood_jax.views.draws import draw_numbers

Metrics = dict[str, Array]


class Run(NamedTuple):
    """What a run is made of, all of it checked.

    start: (params, stats) of config.model.weights that take the place of untrained ones; None =
    there are none, or an earlier stage has yet to make them (see `started`).
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


def prepare(config: ConfigDict) -> Run:
    """Opens and checks everything that `config` names; no compute yet.

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
    if config.train.knn_every and (train.labels is None or open_test(config).labels is None):
        raise ValueError(
            "train.knn_every: kNN accuracy needs labels in data.train and data.test; set it to 0"
        )
    net = build_model(config)
    method = method_module(config.method.name).build(config, net)
    if config.train.accumulate > 1 and not method.separable:
        raise ValueError(
            f"train.accumulate = {config.train.accumulate}: the loss of {config.method.name} needs"
            " the whole batch at once; use 1"
        )
    if method.classes:
        check_classes(train, method.classes, config.method.name)
    if config.data.balanced:
        check_balanced(train.labels, method.classes)
    optimisers = tuple(optim.build(config, trains) for trains in trained(method))
    rates = optim.schedules(config)
    if not method.updates:
        with config.unlocked():
            config.train.steps = 0
    run = Run(config, mesh, train, auxiliary, net, method, optimisers, rates)
    if config.mesh.rules or config.mesh.model > 1:
        abstract_state(run)  # refuses rules that do not fit
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


def trained(method: Method) -> tuple[str, ...]:
    """The regexes of parameters that updates move, each once: one optimiser each."""
    return tuple(dict.fromkeys(update.trains for update in method.updates))


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
    net = run.net if run.method.init is None else run.net._replace(init=run.method.init)
    return init_params(net, run.config, places)


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


def make_step(
    method: Method,
    optimisers: tuple[optax.GradientTransformationExtraArgs, ...],
    rates: optim.Schedules,
    *,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One training step as a pure function of the state and the host batch.

    Every random number comes from (seed, step, example), and for an example that a batch holds
    again from its count there; losses see the global batch, so centre and BatchNorm statistics are
    global without a word about devices.
    """

    def step(state: TrainState, host_batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        view_key, loss_key = jax.random.split(key)
        metrics: Metrics = {}
        params, opt = state.params, list(state.opt)
        draws = {k: draw_numbers(v) for k, v in host_batch.items() if k.endswith("index")}
        host_batch = {**host_batch, **draws}
        for i, update in enumerate(method.updates):
            own = trained(method).index(update.trains)
            update_key = jax.random.fold_in(loss_key, i)
            current = state.replace(params=params)
            grads, aux = _gradients(
                update, method.views, current, host_batch, (view_key, update_key), accumulate
            )
            rated = optim.with_rates(opt[own], rates, state.step)
            moves, opt[own] = optimisers[own].update(grads, rated, params, train_step=state.step)
            params = optax.apply_updates(params, moves)
            state = state.replace(stats=aux.stats, memory=aux.memory)
            suffix = f"_{i}" if i else ""
            metrics |= {name + suffix: value for name, value in aux.metrics.items()}
            metrics["gradient_norm" + suffix] = optax.tree.norm(grads)
        metrics["learning_rate"] = rates.learning_rate(state.step)
        metrics["weight_decay"] = rates.weight_decay(state.step)
        teacher = state.teacher
        if teacher is not None and method.teacher_decay is not None:
            momentum = method.teacher_decay(state.step)
            student = {"params": params, "stats": state.stats}
            teacher = optax.incremental_update(student, teacher, 1 - momentum)
            metrics["teacher_momentum"] = momentum
        new = state.replace(step=state.step + 1, params=params, teacher=teacher, opt=tuple(opt))
        return new, {name: jnp.asarray(v, jnp.float32) for name, v in metrics.items()}

    return step


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


def _gradients(
    update: Update,
    views: Callable[[Batch, Array], Batch],
    state: TrainState,
    host_batch: Batch,
    keys: tuple[Array, Array],
    accumulate: int,
) -> tuple[PyTree, Aux]:
    """Gradients and Aux of one update, as the mean over micro-batches; stats are threaded."""
    view_key, loss_key = keys
    value_and_grad = jax.value_and_grad(update.loss, has_aux=True)

    def one(state: TrainState, batch: Batch, key: Array) -> tuple[PyTree, Aux]:
        (loss, aux), grads = value_and_grad(state.params, state, views(batch, view_key), key)
        return grads, aux.replace(metrics={"loss": loss, **aux.metrics})

    if accumulate == 1:
        return one(state, host_batch, loss_key)

    def body(stats: PyTree, part: tuple[Array, Batch]) -> tuple[PyTree, Any]:
        i, batch = part
        grads, aux = one(state.replace(stats=stats), batch, jax.random.fold_in(loss_key, i))
        return aux.stats, (grads, aux.memory, aux.metrics)

    parts = sharding.micro_batches(host_batch, accumulate)
    stats, sums = jax.lax.scan(body, state.stats, (jnp.arange(accumulate), parts))
    grads, memory, metrics = jax.tree.map(lambda x: x.mean(0), sums)
    return grads, Aux(stats, memory, metrics)
