"""What scores over random views need of an image: computed in the pass that extracts features.

The views are SimCLR's (Chen et al. 2020) as OECL and CSI use them: random resized crop, flip .5,
jitter (.4, .4, .4, .1) with probability .8, grey .2, no blur. Their draws come from the image's
index and the number of the view alone, whatever the batch or the devices.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from ood_jax.types import Array, Extra, Forward, Outputs
from ood_jax.views.crops import evaluation_view, multi_view, simclr_view
from ood_jax.views.negatives import rotate_quarters

CSI_SCALE = (0.54, 0.54)  # CSI's evaluation: --resize_factor 0.54 --resize_fix, fixed
KEY = 0x5EED  # of all these views: a score depends on no run's seed
MOST_SHIFTS = 4


class RandomViews(NamedTuple):
    """What norms are averaged over: `augmentations` random views of an image, their crops' share of
    its area within crop_scale (OECL: .08 to 1, or from .5), f as `feature` names it."""

    feature: str
    augmentations: int
    crop_scale: tuple[float, float]


def random_views(config: ConfigDict) -> RandomViews:
    """As config.score's keys have it.

    Raises:
      ValueError: augmentations below 1, or a crop_scale that is none.
    """
    scale = tuple(config.crop_scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"score.crop_scale = {scale}: use two shares of the area in (0, 1], the smaller first"
        )
    return RandomViews(config.feature, _check_augmentations(config), scale)


def embedding(config: ConfigDict) -> Extra:
    """{"embedding" float32 [B, P]}: f of the clean image, see `_f`; config: feature."""
    return _embedding(config.feature)


def norms(config: ConfigDict) -> Extra:
    """Norms over the clean image and the `random_views` of config.

    {"embedding" float32 [B, P], f of the clean image; "norms" float32 [B, 2], see
    `norms_over_views`}. OECL's code takes the clean image as one view more, too. The views go
    through the network one at a time: B images are all that is in it.

    Raises:
      ValueError: see `random_views`.
    """
    return _norms(random_views(config))


def shifted(config: ConfigDict) -> Extra:
    """Means over A = config.augmentations random views under each of K = config.shifts rotations.

    {"shifted" float32 [B, K, P], the mean of f over the A views of the image rotated by k times 90
    degrees; "shift_logits" float32 [B, K], the mean of its logit for "rotated by k"}. The shift
    logits are the network's second_logits where these are K > 1 wide, else 0: a network without a
    shift classifier. No clean view is among them, and crops have CSI_SCALE, as in CSI's evaluation.
    As there, half of the views are mirrored, before they are turned: mirrored after a quarter turn
    an image would look as if turned the other way. With K = 1 there none is mirrored, here half.

    Raises:
      ValueError: A below 1, or K not from 1 to 4.
    """
    if not 1 <= config.shifts <= MOST_SHIFTS:
        raise ValueError(f"score.shifts = {config.shifts}: use 1 (none) to 4 (all rotations)")
    return _shifted(config.feature, _check_augmentations(config), config.shifts)


def over_views(
    forward: Forward,
    images: Array,
    index: Array,
    drawn: RandomViews,
    turns: tuple[int, ...] = (0,),
) -> jax.Array:
    """f of the clean image, then of its A random views: float32 [1 + A, B, P].

    turns: quarter turns; image i, and each view of it, is turned by the (i modulo their number)-th,
    after its flip, as self-OECL's outliers are.
    """
    quarters = jnp.asarray(turns)[index % len(turns)]

    def f(view: Array) -> Array:
        turned = view if turns == (0,) else jax.vmap(rotate_quarters)(view, quarters)
        return _f(forward.apply(turned), drawn.feature)

    def random(number: Array) -> Array:
        return f(_view(forward, images, index, number, drawn.crop_scale))

    views = lax.map(random, jnp.arange(drawn.augmentations))
    return jnp.concatenate([f(_clean(forward, images))[None], views])


def norms_over_views(views: Array) -> jax.Array:
    """f of V views of N images, [V, N, P] -> float32 [N, 2]: (E_t |f|^2, |E_t f|^2).

    Le-Gia & Ahn, Eqs. 15 and 16.
    """
    return jnp.stack([squared_norm(views).mean(0), squared_norm(views.mean(0))], -1)


def squared_norm(vectors: Array) -> jax.Array:
    """[..., P] -> [...]."""
    return jnp.sum(vectors * vectors, axis=-1)


# Cached, so that scorers with the same numbers share one Extra and its compilation.
@lru_cache
def _embedding(feature: str) -> Extra:
    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        return {"embedding": _f(forward.apply(_clean(forward, images)), feature)}

    return Extra(f"embedding {feature}", compute)


@lru_cache
def _norms(drawn: RandomViews) -> Extra:
    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        f = over_views(forward, images, index, drawn)
        return {"embedding": f[0], "norms": norms_over_views(f)}

    # Of the train set its many views are not needed, only what tells a head that normalises.
    return Extra(f"norms {drawn}", compute, train=_embedding(drawn.feature))


@lru_cache
def _shifted(feature: str, augmentations: int, shifts: int) -> Extra:
    def compute(forward: Forward, images: Array, index: Array) -> dict[str, Array]:
        def one(number: Array) -> tuple[Array, Array]:
            shift = number // augmentations
            view = _view(forward, images, index, number, CSI_SCALE)
            turned = jax.vmap(rotate_quarters, (0, None))(view, shift)
            outputs = forward.apply(turned)
            return _f(outputs, feature), _shift_logits(outputs, shifts)[:, shift]

        def means(of_views: Array) -> jax.Array:
            grouped = of_views.reshape(shifts, augmentations, *of_views.shape[1:])
            return jnp.moveaxis(grouped.mean(1), 0, 1)

        features, logits = lax.map(one, jnp.arange(shifts * augmentations))
        return {"shifted": means(features), "shift_logits": means(logits)}

    return Extra(f"shifted {feature} {augmentations} {shifts}", compute)


def _check_augmentations(config: ConfigDict) -> int:
    if config.augmentations < 1:
        raise ValueError(f"score.augmentations = {config.augmentations}: use 1 or more")
    return config.augmentations


def _f(outputs: Outputs, feature: str) -> Array:
    """The contrastive feature, float32 [B, P]: projections where there are any, else `feature`."""
    found = outputs.projections if outputs.projections is not None else getattr(outputs, feature)
    if found is None:
        raise ValueError(f"{feature}, which score.feature names and this network does not have")
    return found


def _shift_logits(outputs: Outputs, shifts: int) -> Array:
    """[B, K]; zeros where the network has no classifier of K shifts."""
    found = outputs.second_logits
    if shifts > 1 and found is not None and found.shape[-1] == shifts:
        return found
    return jnp.zeros((outputs.features.shape[0], shifts))


def _clean(forward: Forward, images: Array) -> Array:
    return evaluation_view(images, size=forward.size, mean=forward.mean, std=forward.std)


def _view(
    forward: Forward, images: Array, index: Array, number: Array, scale: tuple[float, float]
) -> Array:
    """Random view `number` of each image: normalised float32 [B, size, size, 3]."""
    view = simclr_view(forward.size, scale=scale)
    key = jax.random.fold_in(jax.random.key(KEY), number)
    return multi_view(images, index, key, (view,), mean=forward.mean, std=forward.std)[:, 0]
