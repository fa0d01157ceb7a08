"""One training step as a pure function; the run around it is train.py.

Read `make_step` first: views, gradients of each update, optimiser, teacher, memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ood_jax import optim, sharding
from ood_jax.types import Array, Aux, Batch, Method, PyTree, TrainState, Update
from ood_jax.views.draws import draw_numbers

Metrics = dict[str, Array]


def trained(method: Method) -> tuple[str, ...]:
    """The regexes of parameters that updates move, each once: one optimiser each."""
    return tuple(dict.fromkeys(update.trains for update in method.updates))


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
