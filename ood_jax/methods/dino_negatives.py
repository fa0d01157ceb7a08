"""DINO self-distillation with negatives: Rafiee et al. 2022, "Self-supervised anomaly detection
by self-distillation and negative sampling" (METHODS: section 1). Hold this page beside the paper.
Student and teacher (its running mean) must agree on crops of one image (Eq. 3); the student spreads
crops of negatives (other or rotated images) uniformly over the soft classes (Eq. 4).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ood_jax.losses.distill import (
    distillation,
    entropy,
    moved_centre,
    teacher_probabilities,
    uniform_cross_entropy,
)
from ood_jax.schedules import cosine, ramp, stairs
from ood_jax.types import Array, Aux, Batch, Method, Net, Outputs, PyTree, TrainState, Update
from ood_jax.views.crops import View, dino_views, multi_view
from ood_jax.views.negatives import shift

SOURCES = ("in_distribution", "auxiliary")
ALLOWED = {
    "centre_from": ("all_rows", "first_rows"),
    "weighting": ("means", "pair_counts"),
    "jitter_order": ("view", "example"),
}

DEFAULTS: dict[str, Any] = dict(
    student_temperature=0.1,  # tau_s
    teacher_temperature=0.055,  # tau_t in the first epoch ...
    teacher_temperature_end=0.01,  # ... and in the last, linear, once an epoch
    teacher_momentum=0.996,  # m at the start, cosine ...
    teacher_momentum_end=1.0,  # ... to this
    centre_momentum=0.9,
    centre_from="all_rows",  # all_rows | first_rows (the released code: images 0 and 1 of crop 0)
    negatives=("auxiliary",),  # any of in_distribution, auxiliary; () = plain DINO
    negative_weight=1.0,  # lambda of Eq. 5
    negative_warmup_epochs=0.0,  # lambda rises linearly from 0
    weighting="means",  # means | pair_counts (the released code)
    shift_auxiliary="rot",  # shifting transform R of auxiliary images, see views/negatives.py
    shift_in_distribution="rot",
    positive_local=8,  # local positive views, beside the two global ones
    negative_global=1,  # views of each negative
    negative_local=8,
    local_size=128,  # px; global views have model.image_size
    global_scale=(0.4, 1.0),  # share of the image's area in a crop
    local_scale=(0.05, 0.4),
    flip=0.5,  # probabilities and strengths of the transform T
    jitter=(0.4, 0.4, 0.2, 0.1),  # brightness, contrast, saturation, hue
    jitter_probability=0.8,
    jitter_order="view",  # view (one order a view and step) | example
    grey=0.2,
    blur=1.0,  # times the probabilities 1, 0.1 and 0.5 of first global, second global, local views
    solarize=0.2,  # second global view
)

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {  # github.com/nimaous/SSLSDN, its centre bug included
        "method.teacher_temperature": 0.04,
        "method.centre_from": "first_rows",
        "method.weighting": "pair_counts",
        "method.local_scale": (0.15, 0.4),
        "train.batch": 128,  # in-distribution, beside 128 auxiliary; the rate is scaled by these
    },
}


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    m, train = config.method, config.train
    temperature = stairs(
        m.teacher_temperature,
        m.teacher_temperature_end,
        epochs=math.ceil(train.epochs),
        steps_per_epoch=train.steps_per_epoch,
    )
    negative_weight = ramp(
        m.negative_weight, round(m.negative_warmup_epochs * train.steps_per_epoch)
    )

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        student, stats = _forward(net, params, state.stats, batch, key)
        assert state.teacher is not None
        positive_global = batch["positive_global"]
        images, global_views = positive_global.shape[:2]
        outputs, _ = net.apply(
            state.teacher["params"], state.teacher["stats"], _rows(positive_global), train=False
        )
        raw = _logits(outputs).reshape(images, global_views, -1)
        tau = temperature(state.step)
        probs = teacher_probabilities(raw, state.memory["centre"], tau)
        parts = {
            "positive": distillation(
                student["positive"], probs, student_temperature=m.student_temperature
            ).mean()
        }
        for source in m.negatives:
            parts[source] = uniform_cross_entropy(
                student[source], temperature=m.student_temperature
            ).mean()
        counts = {name: logits.shape[1] for name, logits in student.items()}
        value = total_loss(parts, counts, negative_weight(state.step), m.weighting)
        rows = raw if m.centre_from == "all_rows" else raw[:2, 0]
        memory = {
            "centre": moved_centre(state.memory["centre"], rows, momentum=m.centre_momentum),
            "teacher_temperature": jnp.asarray(tau, jnp.float32),
        }
        monitors = _monitors(probs, student["positive"], memory["centre"], m)
        return value, Aux(stats, memory, {f"loss_{k}": v for k, v in parts.items()} | monitors)

    return Method(
        updates=(Update(loss),),
        views=_views(config),
        init_memory=lambda: {
            "centre": jnp.zeros(config.head.outputs, jnp.float32),
            "teacher_temperature": jnp.asarray(m.teacher_temperature, jnp.float32),
        },
        has_teacher=True,
        teacher_decay=cosine(m.teacher_momentum, m.teacher_momentum_end, train.steps),
        warn=lambda metrics: _warn(metrics, config.head.outputs),
    )


def _forward(
    net: Net, params: PyTree, stats: PyTree, batch: Batch, key: Array
) -> tuple[dict[str, Array], PyTree]:
    """The student's logits [B, V, K] of each group, global views first; one pass a resolution."""
    logits: dict[str, list[Array]] = {}
    for i, size in enumerate(("global", "local")):
        groups = {k.removesuffix(f"_{size}"): v for k, v in batch.items() if k.endswith(size)}
        if not groups:
            continue
        together = jnp.concatenate(list(groups.values()), axis=1)  # no view leaves its device
        noise = jax.random.fold_in(key, i)
        outputs, stats = net.apply(params, stats, _rows(together), train=True, key=noise)
        found = _logits(outputs).reshape(*together.shape[:2], -1)
        ends = np.cumsum([views.shape[1] for views in groups.values()])
        for name, part in zip(groups, jnp.split(found, ends[:-1], axis=1), strict=True):
            logits.setdefault(name, []).append(part)
    return {name: jnp.concatenate(parts, axis=1) for name, parts in logits.items()}, stats


def _logits(outputs: Outputs) -> Array:
    assert outputs.logits is not None  # _check refuses a network without a head
    return outputs.logits


def _rows(views: Array) -> Array:
    """[B, V, H, W, C] -> [B V, H, W, C]."""
    return views.reshape(-1, *views.shape[2:])


def total_loss(
    parts: dict[str, Array], counts: dict[str, int], weight: Array | float, weighting: str
) -> Array:
    """Eq. 5 from the means of "positive" and of each source of negatives, and their view counts.

    means: sums read as means; two sources count half each (Table 1, Combined). pair_counts: the
    released code, which divides a sum over pairs of views by the count of all of them.
    """
    sources = [name for name in parts if name != "positive"]
    share = weight / max(len(sources), 1)
    if weighting == "means":
        return parts["positive"] + sum(share * parts[source] for source in sources)
    pairs = {source: 2 * counts[source] for source in sources}
    pairs["positive"] = 2 * counts["positive"] - 2
    total = pairs["positive"] * parts["positive"]
    total += sum(pairs[source] * share * parts[source] for source in sources)
    return 3 * total / sum(pairs.values())


def _views(config: ConfigDict) -> Any:
    m = config.method
    two_global, local = dino_views(
        global_size=config.model.image_size,
        local_size=m.local_size,
        global_scale=m.global_scale,
        local_scale=m.local_scale,
        local_count=max(m.positive_local, m.negative_local),
        flip=m.flip,
        jitter=m.jitter,
        jitter_probability=m.jitter_probability,
        grey=m.grey,
        blur=m.blur,
        solarize=m.solarize,
    )

    def crops(
        group: str, images: Array, index: Array, key: Array, views: tuple[View, ...], move: Any
    ) -> Batch:
        if not views:
            return {}
        views = tuple(view._replace(jitter_order=m.jitter_order) for view in views)
        out = multi_view(
            images, index, key, views, shift=move, mean=config.data.mean, std=config.data.std
        )
        return {group: out}

    def views(host: Batch, key: Array) -> Batch:
        keys = jax.random.split(key, 2 + 2 * len(SOURCES))
        images, index = host["image"], host["index"]
        batch = crops("positive_global", images, index, keys[0], two_global, None)
        batch |= crops("positive_local", images, index, keys[1], local[: m.positive_local], None)
        for i, source in enumerate(m.negatives):
            move = shift(m[f"shift_{source}"])
            if source == "auxiliary":
                images, index = host["auxiliary"], host["auxiliary_index"]
            else:
                images, index = host["image"], host["index"]
            one, some = keys[2 + 2 * i], keys[3 + 2 * i]
            batch |= crops(
                f"{source}_global", images, index, one, two_global[: m.negative_global], move
            )
            batch |= crops(f"{source}_local", images, index, some, local[: m.negative_local], move)
        return batch

    return views


def _monitors(probs: Array, student_logits: Array, centre: Array, m: ConfigDict) -> dict:
    """What tells a collapse apart from learning; entropies in nats."""
    student = jax.nn.softmax(student_logits / m.student_temperature)
    teacher_entropy = entropy(probs).mean()
    return {
        "teacher_entropy": teacher_entropy,
        "teacher_kl_uniform": math.log(probs.shape[-1]) - teacher_entropy,
        "teacher_marginal_entropy": entropy(probs.mean((0, 1))),
        "student_entropy": entropy(student).mean(),
        # How much a view tells about its soft class: 0 where all inputs get the same answer.
        "student_information": entropy(student.mean((0, 1))) - entropy(student).mean(),
        "centre_norm": jnp.sqrt(jnp.sum(centre**2)),
    }


def _warn(metrics: dict[str, float], outputs: int) -> list[str]:
    most = math.log(outputs)
    found = (
        f"(student entropy {metrics['student_entropy']:.3f} of ln K = {most:.3f}, information"
        f" {metrics['student_information']:.4f})"
    )
    if metrics["student_entropy"] > 0.99 * most:
        return [
            f"the student is collapsing to the uniform distribution {found}: lower"
            " method.negative_weight, let it rise over method.negative_warmup_epochs, or lower"
            " method.teacher_temperature"
        ]
    if metrics["student_information"] < 0.0002 * most:
        return [
            f"the student is collapsing, it says the same of every view {found}: lower optim.lr,"
            " or raise method.teacher_momentum or method.teacher_temperature"
        ]
    return []


def _check(config: ConfigDict) -> None:
    m = config.method
    if config.head.name == "none" or config.head.outputs < 2:
        raise ValueError(
            f"dino_negatives needs soft classes: head.name {config.head.name!r} with head.outputs"
            f" {config.head.outputs}; use head.name dino and 2 outputs or more"
        )
    for source in m.negatives:
        if source not in SOURCES:
            raise ValueError(f"method.negatives has {source!r}: use any of {', '.join(SOURCES)}")
    if len(set(m.negatives)) != len(m.negatives):
        raise ValueError(f"method.negatives {m.negatives} names a source twice")
    if "auxiliary" in m.negatives and not config.data.auxiliary:
        raise ValueError("method.negatives has auxiliary: name a source in data.auxiliary")
    if m.negatives and m.negative_global + m.negative_local < 1:
        raise ValueError("method.negative_global and negative_local are 0: use 1 view or more")
    if min(m.positive_local, m.negative_local, m.negative_global) < 0 or m.negative_global > 2:
        raise ValueError(
            f"views: positive_local {m.positive_local}, negative_local {m.negative_local},"
            f" negative_global {m.negative_global}: none below 0, and at most 2 negative_global"
        )
    for key in ("student_temperature", "teacher_temperature", "teacher_temperature_end"):
        if m[key] <= 0:
            raise ValueError(f"method.{key} = {m[key]}: use a temperature above 0")
    for key in ("teacher_momentum", "teacher_momentum_end", "centre_momentum"):
        if not 0 <= m[key] <= 1:
            raise ValueError(f"method.{key} = {m[key]}: use a share from 0 to 1")
    if m.negative_weight < 0:
        raise ValueError(f"method.negative_weight = {m.negative_weight}: use 0 or more")
    for key, values in ALLOWED.items():
        if m[key] not in values:
            raise ValueError(f"method.{key} {m[key]!r}: use {' or '.join(values)}")
    for source in m.negatives:
        shift(m[f"shift_{source}"])
