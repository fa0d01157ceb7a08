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
    second_logits [B, K]: of a second classifier on the same features; None = no such head.
    stages: activations [B, ..., C] after each stage of the trunk. What nobody reads is not computed
    under jit.
    """

    features: Array
    projections: Array | None = None
    logits: Array | None = None
    second_logits: Array | None = None
    stages: tuple[Array, ...] = ()


class LastLayer(NamedTuple):
    """The linear layer that logits come from: inputs @ kernel + bias.

    kernel: float32 [D, K]. bias: float32 [K]. reads: the field of Outputs that its inputs are,
    features or projections.
    """

    kernel: Array
    bias: Array
    reads: str


class Net(NamedTuple):
    """A network as two pure functions.

    init: (key, inputs) -> (params, stats); stats is {} where nothing is tracked.
    apply: (params, stats, inputs, *, train, key) -> (Outputs, new stats). Inputs are images,
        normalised float32 [B, H, W, C]. `key` is read only with `train=True` (drop path, dropout).
    last_layer: params -> LastLayer of the logits; None = the network has none.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Outputs, PyTree]]
    last_layer: Callable[[PyTree], LastLayer] | None = None


class TrainState(struct.PyTreeNode):
    """All that a run is at one step: data only, so that it can be restored without code.

    step: int32 scalar, updates done so far. params: every leaf that some update trains.
    stats: BatchNorm statistics. teacher: {"params", "stats"} or None. memory: what a method
    remembers without gradients, such as {"centre": [K]}. opt: one optax state for each `trains` of
    the method's updates.
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


class Vectors(NamedTuple):
    """What a run reads beside its images, or in place of them; None = there is no such thing.

    Arrays on the host or, as long as an earlier stage has yet to make them, their shapes
    (jax.ShapeDtypeStruct).
    embeddings: float32 [N, D], of each train image by a fixed teacher. teacher_logits: float32
        [N, K], of the same. known: bool [N], False where the teacher could not read the image,
        whose rows are 0. near: float32 [M, D], outliers near the train set. far: float32 [L, E],
        outliers far from it. origins: field -> where it came from, JSON values.
    """

    embeddings: Any = None
    teacher_logits: Any = None
    known: Any = None
    near: Any = None
    far: Any = None
    origins: dict[str, Any] = {}  # noqa: RUF012  never written to


class LossFn(Protocol):
    """(params, state, batch, key) -> (float32 scalar, Aux); batch: view groups [B, V, H, W, C]."""

    def __call__(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]: ...


class Update(NamedTuple):
    """One gradient update. trains: regex over parameter paths that it may move.

    Updates with the same regex have one optimiser, and its momentum, between them.
    """

    loss: LossFn
    trains: str = ".*"


class Maker(NamedTuple):
    """How a stage that is done makes outliers for later ones.

    kind: near | far. width: shapes of the stage's Vectors -> E of the outliers. make: (params,
    Vectors, labels of the train images int32 [N] or None, mesh) -> (outliers float32 [M, E], what
    else is known of each {name: [M, ...]}), the same in every process. check: (number of train
    images, their labels) -> refuses, before any compute, what `make` would. picture: (outliers,
    path of a PNG) -> are they images, now drawn there? None = they never are.
    """

    kind: str
    width: Callable[[Vectors], int]
    make: Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]
    check: Callable[[int, Array | None], Any] = lambda count, labels: None
    picture: Callable[..., bool] | None = None


class Method(NamedTuple):
    """One paper: which views, which losses, what it remembers, how its teacher follows.

    A method module has DEFAULTS (merged into `config.method`) and build(config, net) -> Method.
    updates: in order within one step; stats and memory are threaded through.
    views: (host batch, key) -> batch, inside the jitted step. Host batch: "image" uint8
        [B, S, S, 3], "index" int32 [B], "label" int32 [B] (-1 = none) and, with an auxiliary
        source, "auxiliary" uint8 [B, S, S, 3] and "auxiliary_index" int32 [B]; with Vectors
        "embedding" [B, D] and "teacher_logits" [B, K] of its images, and as many outliers, "near"
        [B, D] and "far" [B, E].
    init: (key, host batch of one row of zeros) -> (params, stats); None = net.init of an image.
    init_memory: () -> memory.
    teacher_init: (params, stats) -> {"params", "stats"}; None = a copy of the student.
    teacher_decay: step -> momentum of the teacher; None = the teacher is fixed.
    has_teacher: False = no teacher is kept.
    separable: may the loss be accumulated over micro-batches?
    classes: how many it learns from labels, which must lie in 0..classes-1; 0 = reads no labels.
    warn: metrics (floats, averaged over a logging interval) -> warnings that name a remedy.
    images: False = its batches have none.
    reads: the fields of Vectors that it needs.
    prepared: Vectors -> those that its batches are cut from, before the first of them.
    maker: None = the stage makes no outliers, and is a network of images.
    """

    updates: tuple[Update, ...]
    views: Callable[[Batch, Array], Batch]
    init: Callable[..., tuple[PyTree, PyTree]] | None = None
    init_memory: Callable[[], PyTree] = dict
    teacher_init: Callable[[PyTree, PyTree], PyTree] | None = None
    teacher_decay: Schedule | None = None
    has_teacher: bool = False
    separable: bool = True
    classes: int = 0
    warn: Callable[[dict[str, float]], list[str]] = lambda metrics: []
    images: bool = True
    reads: tuple[str, ...] = ()
    prepared: Callable[[Vectors], Vectors] = lambda vectors: vectors
    maker: Maker | None = None


class Features(NamedTuple):
    """What scorers see of N images; host or device arrays, None = there is no such thing.

    features float32 [N, D]; logits float32 [N, K]; projections float32 [N, P]; labels int32 [N]
    (-1 = none); last_layer: of the network's logits; second_logits float32 [N, K]; extra: what an
    `Extra` computed, {name: [N, ...]}.
    """

    features: Array
    logits: Array | None = None
    projections: Array | None = None
    labels: Array | None = None
    last_layer: LastLayer | None = None
    second_logits: Array | None = None
    extra: dict[str, Array] | None = None


class Forward(NamedTuple):
    """A network with its arrays, inside a jitted function.

    apply: normalised inputs [B, H, W, 3] -> Outputs, in evaluation mode. size: px of the inputs.
    mean, std: per channel, of pixels in [0, 1], what inputs were normalised by.
    """

    apply: Callable[[Array], Outputs]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Extra(NamedTuple):
    """More than the plain forward of a batch, for scores that need it.

    name: extras of one name are one computation, kept once, so it tells their numbers. compute:
    (forward, images uint8 [B, S, S, 3], index int32 [B]) -> {name: [B, ...]}, jitted; what is
    random comes from `index`.
    train: False = it is not needed of the train set, which may be large; or what is needed instead.
    """

    name: str
    compute: Callable[[Forward, Array, Array], dict[str, Array]]
    train: "bool | Extra" = True


class Scorer(NamedTuple):
    """A post-hoc score; higher = more OOD, everywhere.

    fit: Features of the in-distribution train set (on the host) -> state, a tree of arrays.
    score: (state, Features) -> float32 [N]; pure, each row by itself: it is traced by jit over
        blocks of rows, and by jax.export. Features' labels are absent here.
    needs: what it reads of Features: fields, "labels" and "last_layer" (when fitted), names in
        extra.
    score_train: state -> float32 [M], the train set under its own fit, each image left out of the
        bank that judges it; None = the score has no bank, so `score` on the train set is the same.
    streamed: (state, Features) -> float32 [N], in place of `score` for a state that may not fit on
        the devices; on the host, bounded memory. None = `score` will do.
    facts: state -> what a reader of the result must know ({"shrinkage": .1}); JSON values.
    extra: what must be computed from the images themselves; None = nothing.
    """

    fit: Callable[[Features], PyTree]
    score: Callable[[PyTree, Features], Array]
    needs: tuple[str, ...] = ("features",)
    score_train: Callable[[PyTree], Array] | None = None
    streamed: Callable[[PyTree, Features], Array] | None = None
    facts: Callable[[PyTree], dict[str, Any]] = lambda state: {}
    extra: Extra | None = None
