"""What methods with labelled images share: one random view of each, and one or two classifiers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.losses.classify import cross_entropy
from ood_jax.types import Array, Aux, Batch, Method, Net, Outputs, PyTree, TrainState, Update
from ood_jax.views.crops import multi_view, simclr_view
from ood_jax.views.specs import View, check_views

VIEW: dict[str, Any] = dict(
    crop_scale=(0.25, 1.0),  # share of the image's area in a crop
    crop_ratio=(3 / 4, 4 / 3),  # width / height of a crop
    crop_pad=0,  # px; > 0 = instead a window of the image with so much black round it (CIFAR: 4)
    flip=0.5,  # probability
    colour=0.0,  # strength of SimCLR's distortion; .5 is its transform for CIFAR
    grey=0.0,  # probability
)
PLAIN = partial(cross_entropy, label_smoothing=0.0)


def one_view(config: ConfigDict) -> Callable[[Array, Array, Array], jax.Array]:
    """(images uint8 [B, S, S, 3], index int32 [B], key) -> float32 [B, size, size, 3].

    Raises:
      ValueError: see `check_views`.
    """
    view = _view(config)
    mean, std = config.data.mean, config.data.std

    def viewed(images: Array, index: Array, key: Array) -> jax.Array:
        return multi_view(images, index, key, (view,), mean=mean, std=std)[:, 0]

    return viewed


def labelled_view(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"image" float32 [B, size, size, 3], "label" int32 [B]}."""
    viewed = one_view(config)

    def views(host: Batch, key: Array) -> Batch:
        return {"image": viewed(host["image"], host["index"], key), "label": host["label"]}

    return views


def outlier_view(config: ConfigDict) -> Callable[[Batch, Array], Batch]:
    """(host batch, key) -> {"both" float32 [B, 2, size, size, 3], "label" int32 [B]}.

    both: an image and, beside it on the same device, the auxiliary one of its row.
    """
    viewed = one_view(config)

    def views(host: Batch, key: Array) -> Batch:
        inside_key, outside_key = jax.random.split(key)
        inside = viewed(host["image"], host["index"], inside_key)
        outside = viewed(host["auxiliary"], host["auxiliary_index"], outside_key)
        return {"both": jnp.stack([inside, outside], axis=1), "label": host["label"]}

    return views


def both_outputs(outputs: Outputs) -> tuple[Outputs, Outputs]:
    """Outputs of B x 2 images passed as [2 B, ...] -> those of the first of each pair, the second.

    One pass, so that BatchNorm sees both.
    """

    def part(which: int) -> Outputs:
        return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:])[:, which], outputs)

    return part(0), part(1)


def classifiers(outputs: Outputs) -> list[Array]:
    """The logits [B, K] of the network's classifiers of K classes, one or two."""
    assert outputs.logits is not None  # check_classifier refuses a network without a head
    second = outputs.second_logits
    if second is None or second.shape != outputs.logits.shape:
        return [outputs.logits]
    return [outputs.logits, second]


def classified(
    outputs: Outputs, labels: Array, *, loss: Callable[[Array, Array], Array] = PLAIN
) -> tuple[Array, dict[str, Array]]:
    """Mean over images of the losses, summed over classifiers; and their accuracies.

    Yu & Aizawa 2019, Eq. 2. loss: (logits [B, K], labels [B]) -> [B].
    """
    heads = classifiers(outputs)
    value = sum(loss(h, labels).mean() for h in heads)
    right = [jnp.mean(jnp.argmax(h, -1) == labels) for h in heads]
    names = ("accuracy", "second_accuracy")
    return jnp.asarray(value), dict(zip(names, right, strict=False))


def classifying(config: ConfigDict, net: Net, loss: Callable[[Array, Array], Array]) -> Method:
    """One pass over one view of each labelled image, and `classified` with `loss`; nothing else."""

    def of_batch(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        outputs, stats = net.apply(params, state.stats, batch["image"], train=True, key=key)
        value, metrics = classified(outputs, batch["label"], loss=loss)
        return value, Aux(stats, state.memory, metrics)

    return Method(
        updates=(Update(of_batch),),
        views=labelled_view(config),
        classes=config.head.outputs,
    )


def check_classifier(config: ConfigDict) -> None:
    """Refuses a head that does not tell classes apart.

    Raises:
      ValueError: no head, or fewer than two classes.
    """
    head, name = config.head, config.method.name
    if head.name == "none" or head.outputs < 2:
        raise ValueError(
            f"{name} needs classes: head.name {head.name!r} with head.outputs {head.outputs};"
            " use head.name linear and the number of classes, 2 or more"
        )


def check_auxiliary(config: ConfigDict) -> None:
    """Refuses a config without outliers.

    Raises:
      ValueError: data.auxiliary is empty.
    """
    if not config.data.auxiliary:
        raise ValueError(
            f"data.auxiliary = '': {config.method.name} learns from other images too; name a source"
            " of them, such as folder:DIR"
        )


def _view(config: ConfigDict) -> View:
    m = config.method
    view = simclr_view(
        config.model.image_size, scale=m.crop_scale, flip=m.flip, colour=m.colour, grey=m.grey
    )._replace(ratio=m.crop_ratio, pad=m.crop_pad)
    check_views((view,))
    return view
