"""OECL: Le-Gia & Ahn, "Understanding normalization in contrastive representation learning and
out-of-distribution detection" (METHODS: section 3). Hold this page beside the paper.

A contrastive loss on the directions of in-distribution features f, and a penalty on the norms |f|
of outliers (Eq. 7). Outliers are an auxiliary set or, in self-OECL, turned images of data.train
(Eq. 8). All go through the network together, so BatchNorm sees them together. Without outliers this
is the base method alone, the paper's baseline.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.contrastive import RowMap, alignment, nt_xent, supcon, uniformity
from ood_jax.losses.norm import norm_penalty, told_apart
from ood_jax.methods import _pairs
from ood_jax.types import Array, Aux, Batch, Method, Net, Outputs, PyTree, TrainState, Update
from ood_jax.views.crops import multi_view

ALLOWED = {
    "outliers": ("auxiliary", "self", "none"),
    "base": ("", "nt_xent", "csi", "supclr", "align_uniform"),
    "turned_views": ("own", "shared"),
}
FALLEN = 0.5  # of what the outliers' norm was before the penalty
APART = 0.53  # AUROC of norms between training images and outliers; 0.5 = they tell nothing
PATIENCE = 1000  # steps with the penalty, at most

DEFAULTS: dict[str, Any] = dict(
    outliers="auxiliary",  # auxiliary (data.auxiliary) | self (images of data.train, turned) | none
    base="",  # L_contrastive: nt_xent | csi (and a classifier of the shifts) | supclr (labels) |
    # align_uniform (Eqs. 12 and 13); "" = the paper's, csi for self and else nt_xent; the released
    # code has nt_xent for both
    shifts=(0, 1),  # S, csi and self: turns by 90 degrees that make images of their own
    outlier_shifts=(2, 3),  # S_oe, self: turns that make outliers
    turned_views="own",  # of an image's turns: own | shared (the released code: the same, turned)
    norm_weight=1.0,  # alpha of Eq. 7; the paper's .1 for DIOR, Raabin-WBC and HAM10000
    norm_warmup_epochs=50.0,  # alpha is 0 before
    temperature=0.5,  # tau
    uniformity_weight=0.5,  # align_uniform: a of (1 - a) L_align + a L_uniform, Fig. 6
    block=_pairs.BLOCK,
    **_pairs.VIEWS,
)


def _optim(**more: Any) -> dict[str, Any]:
    """Keys below optim: what both presets share, and `more`."""
    shared = dict(lr=0.1, lr_batch=0, min_lr=0.0, warmup_epochs=0.0, clip=0.0, freeze_epochs=0.0)
    return {f"optim.{key}": value for key, value in (shared | more).items()}


WITHOUT_OUTLIERS: dict[str, Any] = {"method.outliers": "none"}  # keys that train without any

PRESETS: dict[str, dict[str, Any]] = {
    # In the released LARS's order; there it scales no tensor, because a flag is never set.
    "paper": _optim(name="lars", lars_order="dino", weight_decay=1e-6, weight_decay_end=1e-6),
    "official": {  # github.com/nguoikhongnao/real_OECL
        **_optim(name="sgd", no_decay="", weight_decay=5e-4, weight_decay_end=5e-4),
        "method.base": "nt_xent",
        "method.turned_views": "shared",
    },
}


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`.

    head.second_outputs is the number of shifts with base csi, head.outputs of classes with supclr.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m, train = config.method, config.train
    contrast, rows = _contrast(config), _pairs.row_map(config)
    inside = 2 * len(_turns(config)[0])  # views of an image in the contrastive loss
    warmup = round(m.norm_warmup_epochs * train.steps_per_epoch)
    patience = warmup + min(PATIENCE, (train.steps - warmup) / 4)

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        f, outputs, stats = _pairs.forward(net, params, state.stats, batch["views"], key)
        z = f[:, :inside].reshape(-1, 2, f.shape[-1])
        contrastive = contrast(z, batch["label"], rows).mean()
        beside, metrics = _beside(config, net, params, outputs, batch["label"])
        metrics |= _pairs.monitors(z, rows) | {"loss_contrastive": contrastive}
        if m.outliers == "none":
            return contrastive + beside, Aux(stats, state.memory, metrics)
        norms = norm_penalty(f[:, inside:])
        weight = jnp.where(state.step < warmup, 0.0, m.norm_weight)
        value = contrastive + beside + weight * norms.mean()  # Eq. 7
        before = state.memory["outlier_norm_before"]
        before = jnp.where((weight == 0) | (state.step == 0), norms.mean(), before)
        metrics |= {
            "norm_weight": weight,
            "outlier_norm": norms.mean(),  # projection_norm is that of in-distribution images
            "outlier_norm_before": before,
            "norm_auroc": told_apart(norm_penalty(z), norms),
        }
        return value, Aux(stats, {"outlier_norm_before": before}, metrics)

    return Method(
        updates=(Update(loss),),
        views=_views(config),
        init_memory=lambda: {"outlier_norm_before": jnp.zeros((), jnp.float32)},
        separable=False,
        classes=config.head.outputs if _base(config) == "supclr" else 0,
        warn=lambda metrics: _warn(metrics, patience),
    )


def _base(config: ConfigDict) -> str:
    return config.method.base or ("csi" if config.method.outliers == "self" else "nt_xent")


def _turns(config: ConfigDict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Turns by 90 degrees of in-distribution images (S) and of outliers (S_oe)."""
    m = config.method
    if m.outliers == "self":
        return tuple(m.shifts), tuple(m.outlier_shifts)
    outside = (0,) if m.outliers == "auxiliary" else ()
    return tuple(m.shifts) if _base(config) == "csi" else (0,), outside


def _contrast(config: ConfigDict) -> Callable[[Array, Array, RowMap], Array]:
    """(f [N, 2, P], labels [N], rows) -> L_contrastive of z = f / |f|, float32 [N]."""
    tau, a = config.method.temperature, config.method.uniformity_weight
    if _base(config) == "supclr":
        return lambda f, labels, rows: supcon(f, labels, temperature=tau, rows=rows)
    if _base(config) == "align_uniform":
        return lambda f, labels, rows: (1 - a) * alignment(f) + a * _uniformity(f, rows)
    return lambda f, labels, rows: nt_xent(f, temperature=tau, rows=rows)


def _uniformity(f: Array, rows: RowMap) -> Array:
    """L_uniform of each view's batch, their mean, as in Wang & Isola 2020."""
    return (uniformity(f[:, 0], rows=rows) + uniformity(f[:, 1], rows=rows)) / 2


def _beside(
    config: ConfigDict, net: Net, params: PyTree, outputs: Outputs, labels: Array
) -> tuple[Array, dict[str, Array]]:
    """What the base method learns beside its contrastive loss, from outputs [B, V, ...]."""
    views = 2 * len(_turns(config)[0])
    if _base(config) == "csi":  # the shift of each view: Tack et al. 2020, Eq. 5
        assert outputs.second_logits is not None  # _check wants them
        shift = jnp.repeat(jnp.arange(views // 2), 2)
        loss, accuracy = _pairs.classified(outputs.second_logits[:, :views], shift)
        return loss, {"loss_shift": loss, "shift_accuracy": accuracy}
    if _base(config) == "supclr":  # classes, without moving a feature: see supclr.py
        logits = _pairs.probe_logits(net, params, outputs.features[:, :views])
        loss, accuracy = _pairs.classified(logits, labels[:, None])
        return loss, {"loss_probe": loss, "accuracy": accuracy}
    return jnp.zeros(()), {}


def _views(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"views" [B, V, size, size, 3], "label" [B]}.

    V: two views of the image under each of its turns, then two of the outlier under each of its
    own, as the released code has it; a row lies on one device. Turned after the flip, which would
    make a quarter turn look like three quarter turns, an outlier's.
    """
    m, data, view = config.method, config.data, _pairs.view_of(config)
    turns, outlier_turns = _turns(config)

    def turned(images: Array, index: Array, key: Array, turns: tuple[int, ...]) -> Array:
        own = len(turns) if m.turned_views == "own" else 1
        drawn = multi_view(images, index, key, (view,) * (2 * own), mean=data.mean, std=data.std)
        pairs = jnp.split(drawn, own, axis=1) * (len(turns) // own)
        each = zip(pairs, turns, strict=True)
        return jnp.concatenate([jnp.rot90(pair, turn, axes=(2, 3)) for pair, turn in each], axis=1)

    def views(host: Batch, key: Array) -> Batch:
        inside_key, outlier_key = jax.random.split(key)
        images, index = host["image"], host["index"]
        pairs = turned(images, index, inside_key, turns)
        if m.outliers == "none":
            return {"views": pairs, "label": host["label"]}
        if m.outliers == "auxiliary":
            images, index = host["auxiliary"], host["auxiliary_index"]
        outliers = turned(images, index, outlier_key, outlier_turns)
        return {"views": jnp.concatenate([pairs, outliers], axis=1), "label": host["label"]}

    return views


def _warn(metrics: dict[str, float], patience: float) -> list[str]:
    """Section V-A and Fig. 4: with "substantial overlap between the training datasets and the OE
    datasets" training is "unstable", "leading to the learning of trivial features".

    The norms of both then fall together; of other outliers, theirs alone. At first all may fall, so
    this waits for step `patience`.
    """
    found = _pairs.warnings(metrics)
    if "outlier_norm" not in metrics:
        return found
    inside, outside = metrics["projection_norm"], metrics["outlier_norm"]
    before, apart = metrics["outlier_norm_before"], metrics["norm_auroc"]
    if metrics["step"] > patience and outside < FALLEN * before and apart < APART:
        found.append(
            "the norms of training images and of outliers have fallen together"
            f" (to {inside:.3g} and {outside:.3g}, from {before:.3g} before the penalty; AUROC"
            f" between them {apart:.2f}): where the outliers overlap the training set, use others,"
            " without its images and classes, and for a subject that looks alike when turned"
            " method.outliers=auxiliary; else train for longer or raise method.norm_warmup_epochs"
        )
    return found


def _check(config: ConfigDict) -> None:
    _pairs.check_contrast(config)
    m, epochs = config.method, config.train.epochs
    for key, values in ALLOWED.items():
        if m[key] not in values:
            raise ValueError(f"method.{key} = {m[key]!r}: use {' or '.join(map(repr, values))}")
    if not 0 <= m.norm_weight < math.inf:
        raise ValueError(f"method.norm_weight = {m.norm_weight}: alpha is 0 (no penalty) or more")
    if m.outliers != "none" and not 0 <= m.norm_warmup_epochs < epochs:
        raise ValueError(
            f"method.norm_warmup_epochs = {m.norm_warmup_epochs:g} of train.epochs = {epochs:g}:"
            " use 0 or more and fewer than these, or outliers never count"
        )
    if m.outliers == "auxiliary" and not config.data.auxiliary:
        raise ValueError(
            "method.outliers = 'auxiliary': name a source of outliers in data.auxiliary, or set"
            " method.outliers=self or none"
        )
    turns, others = _turns(config)
    both = (*turns, *others) if m.outliers == "self" else turns
    outside = others or m.outliers == "none"
    if not (turns and outside) or len(set(both)) < len(both) or not {*both} <= {0, 1, 2, 3}:
        raise ValueError(
            f"method.shifts = {tuple(m.shifts)}, outlier_shifts = {tuple(m.outlier_shifts)}: use"
            " quarter turns from 0 to 3, one or more of each, none twice"
        )
    _check_base(config, len(turns))


def _check_base(config: ConfigDict, shifts: int) -> None:
    base, head, a = _base(config), config.head, config.method.uniformity_weight
    if base == "supclr" and config.method.outliers == "self":
        raise ValueError(
            "method.base = 'supclr' with method.outliers = 'self': a turned image has no class; use"
            " csi or nt_xent, or method.outliers=auxiliary"
        )
    if base == "supclr" and head.outputs < 2:
        raise ValueError(f"head.outputs = {head.outputs}: supclr needs the classes, 2 or more")
    if base == "align_uniform" and not 0 <= a <= 1:
        raise ValueError(f"method.uniformity_weight = {a}: use 0 (alignment alone) to 1")
    if base == "csi" and shifts < 2:
        raise ValueError("method.base = 'csi' tells shifts apart: use 2 or more in method.shifts")
    wanted = shifts if base == "csi" else 0
    if head.second_outputs != wanted:
        got = f"head.second_outputs = {head.second_outputs}"
        raise ValueError(f"{got}: with method.base {base} on {shifts} shifts use {wanted}")
