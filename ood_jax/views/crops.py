"""Random views of a batch, on the device: multi-crop, SimCLR's and evaluation's.

Every random number comes from (key, example index, view number), so the same images come out for
any number of devices or processes and any composition of the batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ood_jax.types import Array
from ood_jax.views import ops
from ood_jax.views.specs import View, check_views

CANDIDATES = 10  # boxes tried before the central one, as torchvision
JITTER = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
Shift = Callable[[Array, Array], Array]


_SHARED = ("size", "jitter_order", "pad")  # by the views of a group; the others may be traced
_NUMBERS = tuple(k for k in View._fields if k not in _SHARED)


class _Draw(NamedTuple):
    """Uniform numbers in [0, 1) for one view of one image."""

    area: Array  # [CANDIDATES]
    ratio: Array  # [CANDIDATES]
    corner: Array  # [2]: top, left
    flip: Array
    jitter: Array
    factors: Array  # [4]
    grey: Array
    blur: Array
    radius: Array
    solarize: Array


def multi_view(
    images: Array,
    index: Array,
    key: Array,
    views: tuple[View, ...],
    *,
    shift: Shift | None = None,
    mean: Sequence[float],
    std: Sequence[float],
) -> jax.Array:
    """V random views of each of B images: float32 [B, V, size, size, 3], normalised.

    images: uint8 [B, S, S, 3]. index: int32 [B], what makes each image's draws its own. key: of
    this group of views and this step. views: V views of one size; one compiled body serves all.
    shift: (image [size, size, 3], key) -> image, drawn for every crop, after it and before flip
    and colour (ood_jax.views.negatives).

    Raises:
      ValueError: see `check_views`; or the views differ in size, jitter_order or pad.
    """
    _check_group(views)
    order_key, example_key = jax.random.split(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(example_key, index)
    pixels = images.astype(jnp.float32) / 255.0
    numbers = jnp.arange(len(views))
    specs = {k: np.asarray([getattr(view, k) for view in views], np.float32) for k in _NUMBERS}

    def one_view(job: tuple[Array, dict[str, Array]]) -> jax.Array:
        number, spec = job
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        out = _view(pixels, own, jax.random.fold_in(order_key, number), spec, views, shift)
        return ops.normalise(out, mean, std)

    return jnp.moveaxis(lax.map(one_view, (numbers, specs)), 0, 1)


def _check_group(views: tuple[View, ...]) -> None:
    check_views(views)
    for field in _SHARED:
        found = sorted({getattr(view, field) for view in views})
        if len(found) > 1:
            raise ValueError(f"views of one group have {field} {found}: call once for each")


def _view(
    pixels: Array,
    keys: Array,
    order_key: Array,
    spec: dict[str, Array],
    views: tuple[View, ...],
    shift: Shift | None,
) -> Array:
    """One view [B, size, size, 3] of pixels [B, S, S, 3]; what no view uses is not compiled."""
    size, pad = views[0].size, views[0].pad
    draws = jax.vmap(_draw)(keys)
    if pad:
        boxes = jax.vmap(lambda d: _window(d, pad, pixels.shape[1], pixels.shape[2]))(draws)
        pixels = jnp.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    else:
        boxes = jax.vmap(lambda d: _box(d, spec, pixels.shape[1], pixels.shape[2]))(draws)
    out: Array = jax.vmap(lambda image, box: ops.crop_resize(image, box, size))(pixels, boxes)
    out = jnp.clip(out, 0.0, 1.0)
    if shift is not None:
        out = jax.vmap(shift)(out, jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
    if any(view.flip for view in views):
        out = _where(draws.flip < spec["flip"], jnp.flip(out, 2), out)
    out = _jitter(out, draws, keys, order_key, spec, views)
    if any(view.grey_probability for view in views):
        out = _where(draws.grey < spec["grey_probability"], ops.grey(out), out)
    if any(view.blur_probability for view in views):
        low, high = spec["blur_radius"]
        sigma = jnp.where(
            draws.blur < spec["blur_probability"], low + draws.radius * (high - low), 0.0
        )
        out = jax.vmap(ops.gaussian_blur)(out, sigma)
    if any(view.solarize_probability for view in views):
        out = _where(draws.solarize < spec["solarize_probability"], ops.solarize(out), out)
    return out


def _where(chosen: Array, yes: Array, no: Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], yes, no)


def _draw(key: Array) -> _Draw:
    """All uniform numbers of one view of one image, from one call."""
    sizes = (CANDIDATES, CANDIDATES, 2, 1, 1, 4, 1, 1, 1, 1)
    uniform = jax.random.uniform(jax.random.fold_in(key, 0), (sum(sizes),))
    parts = jnp.split(uniform, np.cumsum(sizes)[:-1].tolist())
    return _Draw(*(p[0] if n == 1 else p for p, n in zip(parts, sizes, strict=True)))


def _box(draw: _Draw, spec: dict[str, Array], rows: int, columns: int) -> jax.Array:
    """(top, left, height, width) in whole px: torchvision's RandomResizedCrop.get_params.

    The first of CANDIDATES boxes that fits; else the largest central one of an allowed ratio.
    """
    (small, large), (narrow, wide) = spec["scale"], spec["ratio"]
    area = rows * columns * (small + draw.area * (large - small))
    log_narrow = jnp.log(narrow)
    ratio = jnp.exp(log_narrow + draw.ratio * (jnp.log(wide) - log_narrow))
    width, height = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first, found = jnp.argmax(fits), jnp.any(fits)
    last_height = jnp.minimum(rows, jnp.round(columns / narrow))
    last_width = jnp.minimum(columns, jnp.round(rows * wide))
    height = jnp.where(found, height[first], last_height)
    width = jnp.where(found, width[first], last_width)
    space = jnp.stack([rows - height, columns - width])
    corner = jnp.where(found, jnp.floor(draw.corner * (space + 1)), jnp.floor(space / 2))
    return jnp.concatenate([jnp.minimum(corner, space), jnp.stack([height, width])])


def _window(draw: _Draw, pad: int, rows: int, columns: int) -> jax.Array:
    """(top, left, rows, columns) in the padded image: torchvision's RandomCrop(padding=pad)."""
    corner = jnp.floor(draw.corner * (2 * pad + 1))
    return jnp.concatenate([corner, jnp.asarray([rows, columns], corner.dtype)])


def _jitter(
    images: Array,
    draws: _Draw,
    keys: Array,
    order_key: Array,
    spec: dict[str, Array],
    views: tuple[View, ...],
) -> Array:
    """Colour operations in random order; those of strength 0 in every view are absent."""
    used = [i for i in range(4) if any(v.jitter[i] * v.jitter_probability for v in views)]
    if not used:
        return images
    strength = spec["jitter"]
    neutral = jnp.asarray((1.0, 1.0, 1.0, 0.0))
    low = jnp.maximum(neutral - strength, jnp.asarray((0.0, 0.0, 0.0, -0.5)))
    factors = low + draws.factors * (neutral + strength - low)
    on = draws.jitter < spec["jitter_probability"]
    factors = jnp.where(on[:, None], factors, neutral)  # neutral factors change nothing

    def branch(i: int) -> Callable[[Array, Array], Array]:
        return lambda image, factor: JITTER[i](image, factor[i])

    if views[0].jitter_order == "view":
        order = jax.random.permutation(order_key, len(used))
        batched = [jax.vmap(branch(i)) for i in used]
        return lax.fori_loop(
            0, len(used), lambda slot, x: lax.switch(order[slot], batched, x, factors), images
        )

    def one(image: Array, factor: Array, key: Array) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(key, 2), len(used))
        each = [branch(i) for i in used]
        return lax.fori_loop(
            0, len(used), lambda slot, x: lax.switch(order[slot], each, x, factor), image
        )

    return jax.vmap(one)(images, factors, keys)


def evaluation_view(
    images: Array, *, size: int, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """uint8 [B, S, S, 3] -> float32 [B, size, size, 3]: bicubic, no crop, normalised."""
    pixels = images.astype(jnp.float32) / 255.0
    if images.shape[1:3] != (size, size):
        pixels = jnp.clip(jax.vmap(lambda image: ops.resize(image, size))(pixels), 0.0, 1.0)
    return ops.normalise(pixels, mean, std)


def simclr_view(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    colour: float = 0.5,
    grey: float = 0.2,
    blur: float = 0.0,
) -> View:
    """SimCLR's transform (Chen et al. 2020, appendix A): crop, flip, colour, grey, blur.

    size: px. scale: share of the area in a crop. colour: strength s of the distortion, jitter
    (.8, .8, .8, .2) s with probability .8; .5 for CIFAR, 1 for ImageNet. flip, grey, blur:
    probabilities; SimCLR blurs with .5 at 224 px, sigma U(0.1, 2) px there and in proportion to
    `size` elsewhere, and not at all at 32 px.

    Raises:
      ValueError: see `check_views`.
    """
    unit = size / 224
    view = View(
        size,
        scale,
        flip=flip,
        jitter=(0.8 * colour, 0.8 * colour, 0.8 * colour, 0.2 * colour),
        jitter_probability=0.8,
        grey_probability=grey,
        blur_probability=blur,
        blur_radius=(0.1 * unit, 2.0 * unit),
    )
    check_views((view,))
    return view


def dino_views(
    *,
    global_size: int,
    local_size: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    local_count: int,
    flip: float = 0.5,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
    jitter_probability: float = 0.8,
    grey: float = 0.2,
    blur: float = 1.0,
    solarize: float = 0.2,
) -> tuple[tuple[View, View], tuple[View, ...]]:
    """DINO's multi-crop (METHODS.md, section 1): (2 global views, local_count local views).

    Sizes in px. flip, jitter_probability, grey, solarize: probabilities; solarize is the second
    global view's. blur: multiplies the probabilities 1 (global 1), 0.1 (global 2), 0.5 (local);
    its radius is U(0.1, 2) px at 224 px, scaled to global_size.

    Raises:
      ValueError: see `check_views`; or local_count < 0.
    """
    if local_count < 0:
        raise ValueError(f"local_count {local_count}: must be at least 0")
    unit = global_size / 224
    first = View(
        global_size,
        global_scale,
        flip=flip,
        jitter=jitter,
        jitter_probability=jitter_probability,
        grey_probability=grey,
        blur_probability=blur,
        blur_radius=(0.1 * unit, 2.0 * unit),
    )
    second = first._replace(blur_probability=0.1 * blur, solarize_probability=solarize)
    local = first._replace(size=local_size, scale=local_scale, blur_probability=0.5 * blur)
    check_views((first, second, local))
    return (first, second), (local,) * local_count
