"""Features of whole sets: one jitted pass over the mesh a batch, gathered on every host.

Works the same in one process or many: each reads its own rows, and all end with all features.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.data.pipeline import eval_batches
from ood_jax.data.source import Source
from ood_jax.data.waited import in_time
from ood_jax.progress import Progress
from ood_jax.types import Array, Extra, Features, Forward, LastLayer, Net, Outputs, PyTree
from ood_jax.views.crops import evaluation_view

FIELDS = ("features", "projections", "logits", "second_logits")
EXTRA = "extra/"  # before the names of what an Extra computed, where they stand beside fields


class Extracted(NamedTuple):
    """Features of the images of a source that could be read.

    features: NumPy, in the source's order. rows: int32 [N], the source's numbers of these images.
    skipped: how many images could not be read.
    """

    features: Features
    rows: np.ndarray
    skipped: int


def extract(
    net: Net,
    params: PyTree,
    stats: PyTree,
    source: Source,
    *,
    config: ConfigDict,
    mesh: Mesh,
    fields: tuple[str, ...] = (),
    extras: tuple[Extra, ...] = (),
    label: str = "features",
    bar: Progress | None = None,
) -> Extracted:
    """What `net` says about every image of `source`, in evaluation mode.

    Args:
      params, stats: of `net`. config: data and model say what an image is made to look like;
        score.batch, images a forward, is rounded up to a multiple of the mesh. fields: those of
        Features that are wanted beside `features`. extras: what else is computed of the images, in
        the same pass; an image's index is its row in the source.
      label: what the progress line calls this. bar: what counts these images, among others; None =
        a bar of their own.

    Raises:
      ValueError: an empty source, a field that the network does not have, no image can be read,
        what an extra refuses.
    """
    step = jitted_fields(net, config, mesh, fields, extras)
    parts: list[dict[str, np.ndarray]] = []
    for batch in _over(step, params, stats, source, config, mesh, label, bar):
        valid = batch.pop("valid")
        parts.append({name: value[valid] for name, value in batch.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = joined.pop("rows")
    found = as_features(joined)._replace(labels=source.labels_of(rows))
    return with_last_layer(Extracted(found, rows, len(source) - len(rows)), net, params)


def jitted_fields(
    net: Net,
    config: ConfigDict,
    mesh: Mesh,
    fields: tuple[str, ...] = (),
    extras: tuple[Extra, ...] = (),
) -> Callable[..., dict[str, jax.Array]]:
    """(params, stats, {"image" uint8 [B, S, S, 3], "index" int32 [B]}) -> what `as_features` takes.

    Jitted, and compiled once for every net, view and mesh: extras are told apart by identity, so
    make them once a run. fields, extras: as `extract`; of extras of one name one is computed.
    Other arrays of the batch come back as they are, whole on every device.
    """
    return partial(
        _fields,
        fields=tuple(dict.fromkeys(("features", *fields))),
        extras=tuple({extra.name: extra for extra in extras}.values()),
        **_static(net, config, mesh),
    )


def forward_of(net: Net, params: PyTree, stats: PyTree, config: ConfigDict) -> Forward:
    """`net` with its arrays, as `config` shows images to it."""
    view = (config.model.image_size, tuple(config.data.mean), tuple(config.data.std))
    return Forward(lambda inputs: net.apply(params, stats, inputs, train=False)[0], *view)


def computed(
    forward: Forward,
    images: Array,
    index: Array,
    fields: tuple[str, ...],
    extras: tuple[Extra, ...] = (),
) -> dict[str, Array]:
    """The fields of Outputs and the extras of images uint8 [B, S, S, 3], for `as_features`; pure.

    Raises:
      ValueError: a field that the network does not have, what an extra refuses.
    """
    view = evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)
    outputs = forward.apply(view)
    found: dict[str, Any] = {name: getattr(outputs, name, None) for name in fields}
    missing = [name for name in fields if found[name] is None]
    if missing:
        have = [name for name in FIELDS if getattr(outputs, name) is not None]
        raise ValueError(f"this network has no {missing[0]}, only {', '.join(have)}")
    for extra in extras:
        made = extra.compute(forward, images, index)
        found |= {EXTRA + name: value for name, value in made.items()}
    return found


def as_features(found: dict[str, Any]) -> Features:
    """{field: [N, ...], "extra/NAME": [N, ...]} as Features; other names are left out."""
    fields = {name: found[name] for name in Features._fields if name in found}
    extra = {n.removeprefix(EXTRA): value for n, value in found.items() if n.startswith(EXTRA)}
    return Features(**fields, extra=extra or None)


def with_last_layer(extracted: Extracted, net: Net, params: PyTree) -> Extracted:
    """`extracted` with the network's last layer as float32 NumPy arrays, where it has one."""
    if net.last_layer is None:
        return extracted
    kernel, bias, reads = net.last_layer(params)
    layer = LastLayer(np.asarray(kernel, np.float32), np.asarray(bias, np.float32), reads)
    return extracted._replace(features=extracted.features._replace(last_layer=layer))


def mean_probability(
    net: Net,
    params: PyTree,
    stats: PyTree,
    source: Source,
    *,
    config: ConfigDict,
    mesh: Mesh,
    centre: Array,
    teacher_temperature: float,
    label: str = "soft-classes",
) -> np.ndarray:
    """Mean over the images of softmax((logits - centre) / teacher_temperature): float64 [K].

    Summed on the devices, so that [N, K] never exists. centre: float32 [K].

    Raises:
      ValueError: as `extract`.
    """
    centre = sharding.replicate(mesh, centre)
    step = partial(_mass, centre=centre, tau=teacher_temperature, **_static(net, config, mesh))
    total, count = np.zeros(np.shape(centre)), 0
    for batch in _over(step, params, stats, source, config, mesh, label):
        total += batch["mass"]
        count += int(batch["valid"].sum())
    return total / count


def _static(net: Net, config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What the jitted functions below are compiled for; the same network is compiled once."""
    return {
        "apply": net.apply,
        "size": config.model.image_size,
        "mean": tuple(config.data.mean),
        "std": tuple(config.data.std),
        "mesh": mesh,
    }


@partial(jax.jit, static_argnames=("fields", "extras", "apply", "size", "mean", "std", "mesh"))
def _fields(params, stats, batch, *, fields, extras, apply, size, mean, std, mesh):
    """See `jitted_fields`; computed over the batch's shards, whole on every device."""
    forward = Forward(
        lambda inputs: apply(params, stats, inputs, train=False, key=None)[0], size, mean, std
    )
    found = computed(forward, batch["image"], batch["index"], fields, extras)
    # Else the compiler may gather the images first, and every device computes everything.
    found = jax.lax.with_sharding_constraint(found, sharding.batch_sharding(mesh))
    found |= {name: value for name, value in batch.items() if name not in ("image", "index")}
    return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


@partial(jax.jit, static_argnames=("apply", "size", "mean", "std", "mesh"))
def _mass(params, stats, batch, *, centre, tau, apply, size, mean, std, mesh):
    """ "mass" [K]: the sum over valid rows of their probabilities; and "valid" [B]."""
    inputs = evaluation_view(batch["image"], size=size, mean=mean, std=std)
    outputs, _ = apply(params, stats, inputs, train=False, key=None)
    if outputs.logits is None:
        raise ValueError("this network has no logits, so no soft-classes")
    probs = jax.nn.softmax((outputs.logits - centre) / tau, axis=-1)
    found = {
        "mass": jnp.where(batch["valid"][:, None], probs, 0.0).sum(0),
        "valid": batch["valid"],
    }
    return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


def _over(
    step: Callable[..., dict[str, jax.Array]],
    params: PyTree,
    stats: PyTree,
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    label: str,
    bar: Progress | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """`step` of every batch of `source`, on the host, with "rows" int32 [B]."""
    if len(source) == 0:
        raise ValueError(f"{source.spec!r} is empty: give a set with one image or more")
    if config.score.batch < 1:
        raise ValueError(f"score.batch = {config.score.batch}: use 1 or more")
    size = -(-config.score.batch // mesh.size) * mesh.size
    params, stats = sharding.replicate(mesh, (params, stats))
    # Queued collectives of simulated devices can time out.
    ahead = 0 if mesh.devices.flat[0].platform == "cpu" else 2
    waiting: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def finish() -> dict[str, np.ndarray]:
        start, found = waiting.popleft()
        rows = np.arange(start, start + size, dtype=np.int32)
        counter.update(min(size, len(source) - start))
        return {"rows": rows} | {name: np.asarray(value) for name, value in found.items()}

    first = jax.process_index() == 0
    counter = bar or Progress(len(source), unit="images", label=label, enabled=first)
    with counter if bar is None else nullcontext():
        batches = eval_batches(
            source,
            batch=size,
            size=config.data.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            memory=config.data.memory,
        )
        for number, batch in enumerate(in_time(batches, config.data.timeout)):
            found = step(params, stats, sharding.global_batch(mesh, batch))
            waiting.append((number * size, found))
            if len(waiting) > ahead:
                yield finish()
        while waiting:
            yield finish()


def occupied(mean: np.ndarray) -> float:
    """Share of the K soft-classes whose mean probability, float [K], is above 1 / K."""
    return float(np.mean(mean > 1.0 / len(mean)))


def pixels_net() -> Net:
    """A network without parameters whose features are the normalised pixels [B, S * S * 3]."""

    def apply(
        params: PyTree, stats: PyTree, inputs: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        return Outputs(inputs.reshape(inputs.shape[0], -1)), stats

    return Net(lambda key, inputs: ({}, {}), apply)


def pack(extracted: Extracted) -> dict[str, np.ndarray]:
    """What a features/<set>.npz holds beside its meta: all but what is None and the last layer."""
    held = extracted.features._asdict() | {"rows": extracted.rows}
    held |= {EXTRA + name: value for name, value in (extracted.features.extra or {}).items()}
    arrays = {name: value for name, value in held.items() if isinstance(value, np.ndarray)}
    return arrays | {"skipped": np.array(extracted.skipped)}


def unpack(held: dict[str, np.ndarray]) -> Extracted:
    """The inverse of `pack`; `with_last_layer` adds what it leaves out."""
    return Extracted(as_features(held), held["rows"], int(held["skipped"]))
