"""OAML: Gao et al., "Outlier aware metric learning" (METHODS: section 4). Hold this page beside it.

A student learns the classes (Eq. 2) from a fixed teacher, whose embeddings and logits of the train
images are data.embeddings, and away from outliers near (data.near) and far (data.far): CE +
alpha1 KL(logits) + alpha2 KL(features) + beta MI(student, near) + gamma MI(student, far). MI is
CLUB's upper bound under a Gaussian q that learns by likelihood. A weight of 0 leaves its part out.
The teacher saw images whole: a student that sees crops is told of the whole image.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses import knowledge as kl
from ood_jax.losses import mutual_information as mi
from ood_jax.methods import _labelled
from ood_jax.models.vectors import Gaussian, feature_map, gaussian
from ood_jax.types import Array, Aux, Batch, Method, Net, PyTree, TrainState, Update

MAP = "feature_map"  # the map's name among parameters and statistics
OUTLIERS = {"near": "near_q", "far": "far_q"}  # and those of q
WEIGHTS = {  # field of Vectors -> weight of what reads it
    "teacher_logits": "logit_weight",
    "embeddings": "feature_weight",
    "near": "near_weight",
    "far": "far_weight",
}
CHANCE = 1.5  # times chance, below which a teacher's answers are none

DEFAULTS: dict[str, Any] = {
    **_labelled.VIEW,
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": 0.0,
    "logit_weight": 4.0,  # alpha1
    "feature_weight": 8.0,  # alpha2
    "near_weight": 0.1,  # beta
    "far_weight": 0.2,  # gamma
    "distillation": "student_teacher",  # KL(student || teacher) | teacher_student (released code)
    "mutual_information": "outlier_given_student",  # | student_given_outlier (released code)
    "likelihood": True,  # q learns by likelihood alone; False = from the bound alone (code)
    "hidden": 512,  # units that the layers of q are shares of
}
PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "method.distillation": "teacher_student",
        "method.mutual_information": "student_given_outlier",
        "method.likelihood": False,
    }
}


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m = config.method
    reads = tuple(field for field, weight in WEIGHTS.items() if m[weight])
    kinds = [kind for kind in OUTLIERS if kind in reads]

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        # A teacher of the same seed and network began where this key leads.
        params, stats = net.init(jax.random.fold_in(key, 0), batch["image"])
        features = net.apply(params, stats, batch["image"], train=False)[0].features
        if "teacher_logits" in reads:
            _check_classes(batch["teacher_logits"].shape[1], config.head.outputs)
        if "embeddings" in reads:
            mapped = feature_map(features.shape[1])
            own = mapped.init(jax.random.fold_in(key, 1), batch["embedding"])
            params, stats = params | {MAP: own[0]}, stats | {MAP: own[1]}
        for number, kind in enumerate(kinds, 2):
            q, x, _ = _q(config, kind, features, batch[kind])
            params = params | {OUTLIERS[kind]: q.init(jax.random.fold_in(key, number), x)}
        return params, stats

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        own = {name: held for name, held in state.stats.items() if name != MAP}
        outputs, stats = net.apply(params, own, batch["image"], train=True, key=key)
        value, metrics = _labelled.classified(outputs, batch["label"])
        metrics |= {"loss_class": value}
        terms: dict[str, Array] = {}
        taught = jnp.zeros(())
        if "teacher_logits" in reads:  # Eq. 3
            teacher, student = batch["teacher_logits"], _labelled.classifiers(outputs)[0]
            terms["logit"] = kl.knowledge(student, teacher, direction=m.distillation).mean()
            metrics |= {"teacher_accuracy": jnp.mean(jnp.argmax(teacher, -1) == batch["label"])}
        if "embeddings" in reads:  # the equation after it
            apply = feature_map(outputs.features.shape[1]).apply
            mapped, of_map = apply(params[MAP], state.stats[MAP], batch["embedding"])
            stats = stats | {MAP: of_map}
            each = kl.knowledge(outputs.features, mapped, direction=m.distillation)
            terms["feature"] = each.mean()
        for kind in kinds:  # Eq. 1
            terms[kind], unlikely = _information(
                config, kind, params, outputs.features, batch[kind]
            )
            taught += unlikely
        for name, term in terms.items():
            value += m[f"{name}_weight"] * term
            metrics |= {f"loss_{name}": term}
        if kinds and m.likelihood:
            metrics |= {"loss": value, "loss_q": taught}  # Eq. 2 alone is what curves show
        return value + taught, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(loss),),
        views=_views(config, reads),
        init=init,
        separable=not reads,  # the map's BatchNorm and the bound are over the whole batch
        classes=config.head.outputs,
        reads=reads,
        warn=lambda metrics: _warn(metrics, config.head.outputs),
    )


def _q(
    config: ConfigDict, kind: str, student: Array, outliers: Array
) -> tuple[Gaussian, Array, Array]:
    """q(y|x), x and y, of the student's features [B, F] and outliers of a kind [B, E]."""
    m = config.method
    x, y = mi.given_and_predicted(student, outliers, direction=m.mutual_information)
    return gaussian(kind, x.shape[1], y.shape[1], m.hidden), x, y


def _information(
    config: ConfigDict, kind: str, params: PyTree, student: Array, outliers: Array
) -> tuple[Array, Array]:
    """CLUB's bound (Eq. 1), and the negative log-likelihood that teaches q; 0 = none does.

    Each moves what the other does not: the bound the student, the likelihood q; or, as in the
    released code, the bound both.
    """
    q, x, y = _q(config, kind, student, outliers)
    own, fixed = params[OUTLIERS[kind]], jax.lax.stop_gradient
    teaches = config.method.likelihood
    mean, log_variance = q.apply(fixed(own) if teaches else own, x)
    bound = mi.club(mean, log_variance, y).mean()
    if not teaches:
        return bound, jnp.zeros(())
    mean, log_variance = q.apply(own, fixed(x))
    return bound, -mi.log_likelihood(mean, log_variance, fixed(y)).mean()


def _views(config: ConfigDict, reads: tuple[str, ...]) -> Any:
    viewed = _labelled.labelled_view(config)
    names = ["embedding" if field == "embeddings" else field for field in reads]

    def views(host: Batch, key: Array) -> Batch:
        return viewed(host, key) | {name: host[name] for name in names}

    return views


def _warn(metrics: dict[str, float], classes: int) -> list[str]:
    right = metrics.get("teacher_accuracy", 1.0)
    if right > CHANCE / classes:
        return []
    return [
        f"the teacher's logits are no better than chance (right for {100 * right:.1f} % of train"
        " images): are the rows of data.embeddings in the order of data.train, and its classes?"
    ]


def _check_classes(teacher: int, student: int) -> None:
    if teacher != student:
        raise ValueError(
            f"data.embeddings has logits of {teacher} classes, head.outputs = {student}: a student"
            " needs the teacher's classes, or method.logit_weight=0"
        )


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    m = config.method
    for weight in WEIGHTS.values():
        if not 0 <= m[weight] < math.inf:
            raise ValueError(f"method.{weight} = {m[weight]}: use 0 (leaves it out) or more")
    for key, allowed in (
        ("distillation", kl.DIRECTIONS),
        ("mutual_information", mi.DIRECTIONS),
    ):
        if m[key] not in allowed:
            raise ValueError(f"method.{key} {m[key]!r}: use {' or '.join(allowed)}")
    if m.hidden < 2:
        raise ValueError(f"method.hidden = {m.hidden}: use 2 or more")
