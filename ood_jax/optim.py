"""Optimisers from optax, told apart by regexes over parameter paths."""

import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ood_jax.lars import ORDERS, lars
from ood_jax.schedules import cosine, warmup_cosine, warmup_steps
from ood_jax.types import Array, PyTree, Schedule

OPTIMISERS = ("adamw", "sgd", "lars")
SCHEDULES = ("cosine", "step")


class Schedules(NamedTuple):
    """What an optimiser is told anew at each step, as functions of the step."""

    learning_rate: Schedule
    weight_decay: Schedule


def schedules(config: ConfigDict) -> Schedules:
    """The schedules of `config.optim` over `config.train.steps` steps.

    Raises:
      ValueError: a warm-up as long as the run, an unknown schedule, drops that are none.
    """
    optim, train = config.optim, config.train
    _check_schedule(optim)
    scale = train.batch / optim.lr_batch if optim.lr_batch else 1.0
    warmup = round(optim.warmup_epochs * train.steps_per_epoch)
    if warmup >= train.steps:
        raise ValueError(
            f"optim.warmup_epochs {optim.warmup_epochs:g} are {warmup} steps and the run has"
            f" {train.steps}: warm up for less, or train for longer"
        )
    peak, lengths = optim.lr * scale, {"warmup": warmup, "steps": train.steps}
    if optim.schedule == "step":
        rate = warmup_steps(peak, optim.drops, optim.drop, **lengths)
    else:
        rate = warmup_cosine(peak, optim.min_lr, **lengths)
    return Schedules(rate, cosine(optim.weight_decay, optim.weight_decay_end, train.steps))


def _check_schedule(optim: ConfigDict) -> None:
    if optim.schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule {optim.schedule!r}: use {' or '.join(SCHEDULES)}")
    shares = (0.0, *optim.drops, 1.0)
    numbers = all(isinstance(share, int | float) for share in shares)
    if not numbers or not all(a < b for a, b in itertools.pairwise(shares)):
        raise ValueError(
            f"optim.drops {optim.drops}: use shares of the run between 0 and 1, ascending, such as"
            " (0.5, 0.75); () = a constant rate"
        )
    if not 0 < optim.drop < math.inf:
        raise ValueError(f"optim.drop {optim.drop:g}: use a number above 0, such as 10")


def build(config: ConfigDict, trains: str = ".*") -> optax.GradientTransformationExtraArgs:
    """The optimiser of one Update.

    Its `update` takes `train_step`, and learning rate and weight decay are set in its state by
    `with_rates`, so that they follow the run's step whatever else counts.

    Raises:
      ValueError: unknown name or order, a number out of its range, or a regex that does not
        compile.
    """
    optim = config.optim
    _check(optim, trains)
    freeze_steps = round(optim.freeze_epochs * config.train.steps_per_epoch)

    def thawed(step: Array, *, train_step: Array, **_: object) -> Array:
        del step  # conditionally_mask's own count
        return train_step >= freeze_steps

    def label(params: PyTree) -> PyTree:
        moves, late = matches(trains, params), matches(optim.freeze, params)
        names = {(True, True): "late", (True, False): "always"}
        return jax.tree.map(lambda m, f: names.get((m, f), "never"), moves, late)

    moved = optax.partition(
        {
            "always": _unmasked(optim),
            "late": optax.conditionally_mask(_unmasked(optim), thawed, forward_extra_args=True),
            "never": optax.set_to_zero(),
        },
        label,
    )
    slowed = [multiplied(optim.multipliers)] if optim.multipliers else []
    return optax.chain(clip_each(optim.clip), moved, *slowed)


def _check(optim: ConfigDict, trains: str) -> None:
    if optim.name not in OPTIMISERS:
        raise ValueError(f"optim.name {optim.name!r}: use {' or '.join(OPTIMISERS)}")
    for key in ("no_decay", "no_adapt", "freeze"):
        _compiled(optim[key], f"optim.{key} ")
    _compiled(trains)
    for key in ("lr", "min_lr", "weight_decay", "weight_decay_end", "eps", "clip"):
        if not 0 <= optim[key] < math.inf:
            raise ValueError(f"optim.{key} {optim[key]:g}: use a number of 0 or more")
    if optim.name != "adamw" and not 0 <= optim.momentum < 1:
        raise ValueError(f"optim.momentum {optim.momentum:g}: use 0 (none) or more, below 1")
    if optim.name != "sgd" and optim.nesterov:
        raise ValueError(f"optim.nesterov: {optim.name} has none; set it to False, or use sgd")
    if optim.name == "lars" and optim.lars_order not in ORDERS:
        raise ValueError(f"optim.lars_order {optim.lars_order!r}: use {' or '.join(ORDERS)}")
    if optim.name == "lars" and not optim.trust > 0:
        raise ValueError(f"optim.trust {optim.trust:g}: use a number above 0, such as 0.001")


def _unmasked(optim: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The optimiser by itself, its learning rate and weight decay in its state."""

    def decays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: not x, matches(optim.no_decay, params))

    def adapts(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: not x, matches(optim.no_adapt, params))

    def sgd(learning_rate: Array, weight_decay: Array) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay, mask=decays)
        return optax.chain(decay, optax.sgd(learning_rate, optim.momentum, optim.nesterov))

    def scaled(learning_rate: Array, weight_decay: Array) -> optax.GradientTransformation:
        return lars(
            learning_rate,
            weight_decay,
            order=optim.lars_order,
            momentum=optim.momentum,
            trust=optim.trust,
            eps=optim.eps,
            decays=decays,
            adapts=adapts,
        )

    if optim.name == "adamw":
        return optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
            learning_rate=0.0,
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=0.0,
            mask=decays,
        )
    chosen = sgd if optim.name == "sgd" else scaled
    return optax.inject_hyperparams(chosen)(learning_rate=0.0, weight_decay=0.0)


def with_rates(opt_state: PyTree, rates: Schedules, step: Array) -> PyTree:
    """`opt_state` with the learning rate and weight decay of `step` in it."""
    return optax.tree.set(
        opt_state,
        learning_rate=jnp.asarray(rates.learning_rate(step), float),
        weight_decay=jnp.asarray(rates.weight_decay(step), float),
    )


def clip_each(limit: float) -> optax.GradientTransformation:
    """Each tensor on its own: g *= limit / (|g| + 1e-6) where that is below 1; 0 = no clipping."""
    if not limit:
        return optax.identity()

    def clip(g: Array, _: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32))))
        return g * jnp.minimum(1.0, limit / (norm + 1e-6)).astype(g.dtype)

    return optax.stateless_with_tree_map(clip)


def multiplied(rules: tuple[str, ...]) -> optax.GradientTransformation:
    """Updates times a number, of parameters whose path a rule matches; the first one that does.

    rules: "REGEX=NUMBER" each.

    Raises:
      ValueError: what is no such rule; of `init`, a rule that matches no parameter.
    """
    parsed = [_rule(rule) for rule in rules]

    def init(params: PyTree) -> optax.EmptyState:
        for rule, (regex, _) in zip(rules, parsed, strict=True):
            if not any(jax.tree.leaves(matches(regex.pattern, params))):
                raise ValueError(f"optim.multipliers: {rule!r} matches no parameter")
        return optax.EmptyState()

    def scale(path: tuple, update: Array) -> Array:
        name = path_name(path)
        return next((update * number for regex, number in parsed if regex.fullmatch(name)), update)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _rule(rule: str) -> tuple[re.Pattern[str], float]:
    pattern, equals, text = str(rule).rpartition("=")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not equals or not 0 <= number < math.inf:
        raise ValueError(f"optim.multipliers: {rule!r} is not REGEX=NUMBER with 0 or more")
    return _compiled(pattern, "optim.multipliers "), number


def path_name(path: tuple) -> str:
    """A key path of jax.tree_util as text, such as trunk/block_0/norm_1/scale."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(pattern: str, params: PyTree) -> PyTree:
    """For each leaf: does the whole of its path match the regex?"""
    regex = _compiled(pattern)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: regex.fullmatch(path_name(path)) is not None, params
    )


def _compiled(pattern: str, key: str = "") -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}{pattern!r} is no regular expression: {error}") from None
