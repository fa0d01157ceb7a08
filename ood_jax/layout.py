"""How the state of a run lies on the mesh: config.mesh.rules, texts of the form REGEX=SPEC.

REGEX is held against the whole path of a parameter (head/last/direction) or of an array of the
method's memory (memory/centre); the first rule that matches counts, and what none matches is whole
on every device. SPEC is the axis that each dimension is split over, by spaces, - for none
("- model"), or the word fsdp: the largest dimension that can be is split over `data`. The optimiser
state and the teacher lie as the parameters that they belong to; scalars and BatchNorm statistics
are whole everywhere.
"""

import difflib
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ood_jax.optim import path_name
from ood_jax.sharding import DATA, MODEL, replicated
from ood_jax.types import PyTree, TrainState

FSDP = "fsdp"
WHOLE = PartitionSpec()
_map = jax.tree_util.tree_map_with_path
_leaves = jax.tree_util.tree_leaves_with_path


class Rule(NamedTuple):
    """text: as in the config. axes: of each dimension, None = not split; "fsdp" = see above."""

    text: str
    regex: re.Pattern[str]
    axes: tuple[str | None, ...] | str


def read_rules(texts: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules that the texts of config.mesh.rules are.

    Raises:
      ValueError: a text that is none.
    """
    return tuple(_rule(str(text)) for text in texts)


def _rule(text: str) -> Rule:
    pattern, equals, spec = text.rpartition("=")
    words = spec.split()
    if not equals or not words:
        raise ValueError(
            f"mesh.rules: {text!r} is not REGEX=SPEC, such as head/last/direction=- {MODEL}"
        )
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"mesh.rules: {pattern!r} is no regular expression: {error}") from None
    if words == [FSDP]:
        return Rule(text, regex, FSDP)
    axes = tuple(None if word == "-" else word for word in words)
    for axis in {*axes} - {None}:
        if axis not in (DATA, MODEL) or axes.count(axis) > 1:
            raise ValueError(
                f"mesh.rules: {text!r} splits over {axis!r}{' twice' * (axes.count(axis) > 1)}: use"
                f" -, {DATA} and {MODEL}, each axis once, or the word {FSDP} alone"
            )
    return Rule(text, regex, axes)


def state_shardings(mesh: Mesh, state: TrainState, rules: tuple[Rule, ...]) -> TrainState:
    """Where each array of `state` (its shapes are enough) lies: a tree of NamedShardings.

    Raises:
      ValueError: a rule that no array needs, dimensions that an array does not have or that do not
        divide, a `model` axis that no rule uses.
    """
    whole = replicated(mesh)
    params = {path_name(path): x.shape for path, x in _leaves(state.params)}
    used: dict[str, Rule] = {}  # by the path that the rule was needed for

    def named(name: str, x: Any) -> NamedSharding:
        rule = next((rule for rule in rules if rule.regex.fullmatch(name)), None)
        if rule is None or not x.ndim:
            return whole
        used[name] = rule
        return NamedSharding(mesh, _spec(mesh, rule, name, x.shape))

    def owned(path: Any, x: Any) -> NamedSharding:
        """Of an array of the optimiser: its path ends in that of the parameter it belongs to."""
        words = path_name(path).split("/")
        ends = ("/".join(words[i:]) for i in range(len(words)))
        name = next((end for end in ends if params.get(end) == x.shape), None)
        return named(name, x) if name else whole

    def by_path(tree: PyTree, prefix: str = "") -> PyTree:
        return _map(lambda path, x: named(prefix + path_name(path), x), tree)

    found = jax.tree.map(lambda _: whole, state).replace(
        params=by_path(state.params),
        memory=by_path(state.memory, "memory/"),
        opt=_map(owned, state.opt),
    )
    if state.teacher is not None:
        teacher = found.teacher | {"params": by_path(state.teacher["params"])}
        found = found.replace(teacher=teacher)
    names = [*params, *(f"memory/{path_name(path)}" for path, _ in _leaves(state.memory))]
    _check_used(mesh, rules, used, names)
    return found


def _spec(mesh: Mesh, rule: Rule, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    if isinstance(rule.axes, str):
        parts = mesh.shape[DATA]
        largest = max((n for n in shape if n % parts == 0), default=None)
        if largest is None:
            return WHOLE
        return PartitionSpec(*(None,) * shape.index(largest), DATA)
    if len(rule.axes) > len(shape):
        raise ValueError(
            f"mesh.rules: {rule.text!r} names {len(rule.axes)} dimensions, and {name} has"
            f" {len(shape)}, {list(shape)}: name at most so many"
        )
    for size, axis in zip(shape, rule.axes, strict=False):
        if axis and size % mesh.shape[axis]:
            raise ValueError(
                f"mesh.rules: {rule.text!r} splits {name} {list(shape)} over {axis}, and {size}"
                f" does not divide over its {mesh.shape[axis]} devices: change that size,"
                " mesh.model or train.devices, or give it a rule of its own before this one"
            )
    return PartitionSpec(*rule.axes)


def _check_used(
    mesh: Mesh, rules: tuple[Rule, ...], used: dict[str, Rule], names: list[str]
) -> None:
    for rule in rules:
        if rule not in used.values():
            close = difflib.get_close_matches(rule.regex.pattern, names, 1, 0.0)
            raise ValueError(
                f"mesh.rules: {rule.text!r} matches no array that an earlier rule has not; did you"
                f" mean {close[0]}?"
            )
    splits = {axis for rule in rules if not isinstance(rule.axes, str) for axis in rule.axes}
    if mesh.shape[MODEL] > 1 and MODEL not in splits:
        raise ValueError(
            f"mesh.model = {mesh.shape[MODEL]}: no rule splits anything over {MODEL}, so these"
            f" devices would do the same work; add one to mesh.rules, such as"
            f" head/last/direction=- {MODEL}, or set mesh.model to 1"
        )


def places(state: PyTree) -> PyTree:
    """The shardings of the arrays, or shapes with shardings, of `state`."""
    return jax.tree.map(lambda x: x.sharding, state)
