"""The types every part of ood_jax speaks: plain trees of arrays and tuples of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
PyTree = Any
Batch = dict[str, Any]
Schedule = Callable[[Array], Array]


class Outputs(struct.PyTreeNode):
    """What a network says about B inputs; float32 whatever the compute type.

    features [B, D]: the trunk's output, what papers score with.
    projections [B, P]: the projection head's output before its last layer; None = no such head.
    logits [B, K]: scores over K classes or soft-classes; None = no such head.
    """

    features: Array
    projections: Array | None = None
    logits: Array | None = None


class Net(NamedTuple):
    """A network as two pure functions.

    init: (key, inputs) -> (params, stats); stats is {} where nothing is tracked.
    apply: (params, stats, inputs, *, train, key) -> (Outputs, new stats). Inputs are images,
        normalised float32 [B, H, W, C]. `key` is read only with `train=True` (drop path, dropout).
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Outputs, PyTree]]


class TrainState(struct.PyTreeNode):
    """All that a run is at one step: data only, so that it can be restored without code.

    step: int32 scalar, updates done so far. params: every leaf that some update trains.
    stats: BatchNorm statistics. teacher: {"params", "stats"} or None. memory: what a method
    remembers without gradients, such as {"centre": [K]}. opt: one optax state an Update.
    """

    step: Array
    params: PyTree
    stats: PyTree
    teacher: PyTree | None
    memory: PyTree
    opt: PyTree


class Aux(struct.PyTreeNode):
    """What a loss returns beside its value: new stats, new memory, float32 scalar metrics."""

    stats: PyTree
    memory: PyTree
    metrics: dict[str, Array]


class LossFn(Protocol):
    """(params, state, batch, key) -> (float32 scalar, Aux); batch: view groups [B, V, H, W, C]."""

    def __call__(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]: ...


class Update(NamedTuple):
    """One gradient update. trains: regex over parameter paths that it may move."""

    loss: LossFn
    trains: str = ".*"


class Method(NamedTuple):
    """One paper: which views, which losses, what it remembers, how its teacher follows.

    A method module has DEFAULTS (merged into `config.method`) and build(config, net) -> Method.
    updates: in order within one step; stats and memory are threaded through.
    views: (host batch, key) -> batch, inside the jitted step. Host batch: "image" uint8
        [B, S, S, 3], "index" int32 [B], "label" int32 [B] (-1 = none) and, with an auxiliary
        source, "auxiliary" uint8 [B, S, S, 3] and "auxiliary_index" int32 [B].
    init: (key, inputs) -> (params, stats); None = net.init.
    init_memory: () -> memory.
    teacher_init: (params, stats) -> {"params", "stats"}; None = a copy of the student.
    teacher_decay: step -> momentum of the teacher; None = the teacher is fixed.
    has_teacher: False = no teacher is kept.
    separable: may the loss be accumulated over micro-batches?
    warn: metrics (floats, averaged over a logging interval) -> warnings that name a remedy.
    """

    updates: tuple[Update, ...]
    views: Callable[[Batch, Array], Batch]
    init: Callable[..., tuple[PyTree, PyTree]] | None = None
    init_memory: Callable[[], PyTree] = dict
    teacher_init: Callable[[PyTree, PyTree], PyTree] | None = None
    teacher_decay: Schedule | None = None
    has_teacher: bool = False
    separable: bool = True
    warn: Callable[[dict[str, float]], list[str]] = lambda metrics: []


class Features(NamedTuple):
    """What scorers see of N images; host or device arrays.

    features float32 [N, D]; logits float32 [N, K] or None; projections float32 [N, P] or None;
    labels int32 [N] (-1 = none) or None; head: the last layer's {"kernel" [D, K], "bias" [K]} or
    None.
    """

    features: Array
    logits: Array | None = None
    projections: Array | None = None
    labels: Array | None = None
    head: dict[str, Array] | None = None


class Scorer(NamedTuple):
    """A post-hoc score; higher = more OOD, everywhere.

    fit: Features of the in-distribution train set -> state.
    score: (state, Features) -> float32 [N].
    score_train: state -> float32 [M], the train set under its own fit, each image left out of the
    bank that judges it; None = the score has no bank, so `score` on the train set is the same.
    """

    fit: Callable[[Features], PyTree]
    score: Callable[[PyTree, Features], Array]
    score_train: Callable[[PyTree], Array] | None = None
