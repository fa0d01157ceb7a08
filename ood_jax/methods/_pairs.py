"""What contrastive methods share: two SimCLR views of an image, and what a network says of them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax import sharding
from ood_jax.losses.classify import cross_entropy
from ood_jax.losses.contrastive import RowMap, alignment, uniformity
from ood_jax.types import Array, Batch, Net, Outputs, PyTree
from ood_jax.views.crops import multi_view, simclr_view
from ood_jax.views.specs import View

VIEWS: dict[str, Any] = dict(  # SimCLR's transform, see views/crops.py
    crop_scale=(0.08, 1.0),  # share of the image's area in a crop
    flip=0.5,  # probability
    colour=0.5,  # strength of the distortion
    grey=0.2,  # probability
    blur=0.0,  # probability; SimCLR: .5 at 224 px, none at 32 px
)
BLOCK = 1024  # anchors that a device compares at once: bounds memory, changes no number


def view_of(config: ConfigDict) -> View:
    """The random view that `config.method` describes.

    Raises:
      ValueError: see `check_views`.
    """
    m = config.method
    return simclr_view(
        config.model.image_size,
        scale=m.crop_scale,
        flip=m.flip,
        colour=m.colour,
        grey=m.grey,
        blur=m.blur,
    )


def two_views(config: ConfigDict, view: View, images: Array, index: Array, key: Array) -> Array:
    """uint8 [B, S, S, 3], index int32 [B] -> float32 [B, 2, size, size, 3]."""
    mean, std = config.data.mean, config.data.std
    return multi_view(images, index, key, (view, view), mean=mean, std=std)


def pair_views(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"pair" float32 [B, 2, size, size, 3], "label" int32 [B]}."""
    view = view_of(config)

    def views(host: Batch, key: Array) -> Batch:
        pair = two_views(config, view, host["image"], host["index"], key)
        return {"pair": pair, "label": host["label"]}

    return views


def forward(
    net: Net, params: PyTree, stats: PyTree, views: Array, key: Array
) -> tuple[Array, Outputs, PyTree]:
    """The network in training on views [B, V, ...].

    Returns:
      (projections [B, V, P], Outputs of arrays [B, V, ...], new stats).

    All views pass at once, so BatchNorm sees them together.
    """
    images, count = views.shape[:2]
    outputs, stats = net.apply(
        params, stats, views.reshape(-1, *views.shape[2:]), train=True, key=key
    )
    shaped = jax.tree.map(lambda x: x.reshape(images, count, *x.shape[1:]), outputs)
    assert shaped.projections is not None  # check_contrast wants a projection head
    return shaped.projections, shaped, stats


def classified(
    logits: Array, labels: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Mean cross-entropy and accuracy of logits [B, V, K]; int labels broadcast to [B, V]."""
    labels = jnp.broadcast_to(labels, logits.shape[:2]).reshape(-1)
    logits = logits.reshape(-1, logits.shape[-1])
    entropies = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return entropies.mean(), jnp.mean(jnp.argmax(logits, -1) == labels)


def probe_logits(net: Net, params: PyTree, features: Array) -> Array:
    """What the linear classifier says of features [..., D] that it does not move: [..., K].

    CSI's code trains one so, beside its supervised contrastive loss.
    """
    assert net.last_layer is not None  # whoever asks wants classes
    layer = net.last_layer(params)
    return jax.lax.stop_gradient(features) @ layer.kernel + layer.bias


def row_map(config: ConfigDict) -> RowMap:
    """How a loss compares every anchor with all others on this run's devices.

    Raises:
      ValueError: method.block below 1.
    """
    if config.method.block < 1:
        raise ValueError(f"method.block = {config.method.block}: use 1 or more, such as {BLOCK}")
    mesh = sharding.make_mesh(config.train.devices, config.mesh.model)
    return sharding.each_row(mesh, config.method.block)


def check_contrast(config: ConfigDict) -> None:
    """Refuses what no contrastive loss can be computed with.

    Raises:
      ValueError: no projection head, a batch of 1, a temperature that is not above 0.
    """
    name = config.method.name
    if config.head.name != "projection":
        raise ValueError(
            f"{name} compares projections: head.name = {config.head.name!r}; use projection"
        )
    if config.train.batch < 2:
        raise ValueError(
            f"train.batch = {config.train.batch}: {name} contrasts each image with the others of"
            " its batch; use 2 or more (hundreds to learn well)"
        )
    if not 0 < config.method.temperature < math.inf:
        raise ValueError(
            f"method.temperature = {config.method.temperature}: use a number above 0, such as 0.5"
        )


def monitors(projections: Array, rows: RowMap) -> dict[str, Array]:
    """Alignment and uniformity (Wang & Isola 2020) of projections [B, 2, P]; without gradients."""
    z = jax.lax.stop_gradient(projections)
    return {
        "alignment": alignment(z).mean(),
        "uniformity": uniformity(z[:, 0], rows=rows),
        "projection_norm": jnp.linalg.norm(z, axis=-1).mean(),
    }


def warnings(metrics: dict[str, float]) -> list[str]:
    """What a contrastive run should be told, from its logged means."""
    if metrics["step"] > 100 and metrics["uniformity"] > -0.02:
        return [
            f"all embeddings are nearly the same (uniformity {metrics['uniformity']:.3f}, 0 ="
            " collapsed): lower optim.lr or warm up for longer"
        ]
    return []
