"""Contrastive losses over the global batch: NT-Xent, SupCon, CSI's, alignment and uniformity.

Embeddings are raw: normalised here. Every anchor is compared with all others; `rows` says how many
anchors at once and on which device, and changes neither value nor gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ood_jax.types import Array, PyTree

# rows(function, tree): function(one row's leaves, all rows' leaves) -> its values; -> [R, ...].
RowMap = Callable[[Callable[[PyTree, PyTree], PyTree], PyTree], PyTree]


def whole_batch(function: Callable[[PyTree, PyTree], PyTree], tree: PyTree) -> PyTree:
    """The plain RowMap: all rows at once, [R, R] values in memory; `sharding.each_row` blocks."""
    return jax.vmap(function, in_axes=(0, None))(tree, tree)


def nt_xent(embeddings: Array, *, temperature: float, rows: RowMap = whole_batch) -> Array:
    """-log of the other view's share of sum_{a != anchor} exp(cos(anchor, a) / T).

    SimCLR (Chen et al. 2020) Eq. 1, mean over an image's two directions. The sum of both, Winkens
    et al. 2020 Eq. 1 and SimCLR's code, is exactly twice this. CSI's code adds 1e-8 in the log.

    Args:
      embeddings: [B, 2, P], raw. temperature: T > 0.

    Returns:
      float32 [B], nats.

    Raises:
      ValueError: another rank or number of views, one image, a temperature not above 0.
    """
    _check(embeddings, temperature)
    if embeddings.shape[1] != 2:
        raise ValueError(f"nt_xent: {embeddings.shape[1]} views an image: use 2")
    z = unit(embeddings)
    image = jnp.repeat(jnp.arange(len(z)), 2)
    negatives = _log_sum_others(
        lambda x, y: _inner(x, y) / temperature, _anchors(z), image, rows
    ).reshape(-1, 2)
    positive = jnp.sum(z[:, 0] * z[:, 1], -1, keepdims=True) / temperature
    # log(e^p + e^n) - p without the difference of two near numbers: small losses stay exact.
    return jax.nn.softplus(negatives - positive).mean(1)


def supcon(
    embeddings: Array, labels: Array, *, temperature: float, rows: RowMap = whole_batch
) -> Array:
    """Mean of -log(exp(cos_p / T) / sum_{a != anchor} exp(cos_a / T)) over the anchor's positives.

    L_out of Khosla et al. 2020, Eq. 2: positives are the image's other views and all views of its
    class; mean over the image's anchors. SSD's official code multiplies by T / 0.07.

    Args:
      embeddings: [B, V, P], raw, V >= 2. labels: int [B]; all different = `nt_xent`.
      temperature: T > 0.

    Returns:
      float32 [B], nats.

    Raises:
      ValueError: another rank, one view, one image, labels of another length, a temperature not
        above 0.
    """

    def loss(x: Array, z: Array, same: Array, other: Array) -> Array:
        s = _inner(x, z) / temperature
        positive = same & other
        mean = jnp.sum(jnp.where(positive, s, 0.0)) / jnp.sum(positive)
        positives = jax.nn.logsumexp(jnp.where(positive, s - mean, -jnp.inf))
        negatives = jax.nn.logsumexp(jnp.where(same, -jnp.inf, s - mean))
        return positives + jax.nn.softplus(negatives - positives)  # as in nt_xent: stays exact

    _check(embeddings, temperature)
    return _supervised(loss, embeddings, labels, rows)


def supcon_with_self(
    embeddings: Array, labels: Array, *, temperature: float, rows: RowMap = whole_batch
) -> Array:
    """CSI's Supervised_NT_xent: SupCon as its code has it, the anchor among its own positives.

    Mean of -log(q_p + e) over the n_i anchors of the class, the anchor itself included with q = 0,
    where q_p = exp((cos_p - m) / T) / (sum_{a != anchor} exp((cos_a - m) / T) + e), m = max cos,
    e = 1e-8: where every q is far above e, (n_i - 1) / n_i `supcon` + 18.42 / n_i.

    Arguments, result and errors: those of `supcon`.
    """
    eps = 1e-8

    def loss(x: Array, z: Array, same: Array, other: Array) -> Array:
        s = _inner(x, z)
        s = (s - jax.lax.stop_gradient(s.max())) / temperature
        shares = jnp.where(other, jnp.exp(s), 0.0)
        shares = shares / (shares.sum() + eps)
        return jnp.sum(jnp.where(same, -jnp.log(shares + eps), 0.0)) / jnp.sum(same)

    _check(embeddings, temperature)
    return _supervised(loss, embeddings, labels, rows)


def alignment(embeddings: Array) -> Array:
    """|z - z'|^2 of an image's two unit vectors; Wang & Isola 2020, alpha = 2.

    Args:
      embeddings: [B, 2, P], raw.

    Returns:
      float32 [B], in 0..4.

    Raises:
      ValueError: another rank or number of views.
    """
    if embeddings.ndim != 3 or embeddings.shape[1] != 2:
        raise ValueError(f"alignment: embeddings {embeddings.shape}: use [B, 2, P]")
    z = unit(embeddings)
    return jnp.sum((z[:, 0] - z[:, 1]) ** 2, -1)


def uniformity(embeddings: Array, *, t: float = 1.0, rows: RowMap = whole_batch) -> Array:
    """log of the mean over pairs of different rows of exp(-t |z - z'|^2), z unit vectors.

    Wang & Isola 2020, whose code has t = 2.

    Args:
      embeddings: [N, P], raw. t: > 0.

    Returns:
      float32 scalar, at most 0.

    Raises:
      ValueError: another rank, one row, t not above 0.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"uniformity: embeddings {embeddings.shape}: use [N, P] with N >= 2")
    if not t > 0:
        raise ValueError(f"uniformity: t = {t}: use a value above 0")

    def closeness(x: Array, z: Array) -> Array:
        return -t * (jnp.sum(x * x) + jnp.sum(z * z, -1) - 2 * _inner(x, z))

    count = len(embeddings)
    sums = _log_sum_others(closeness, unit(embeddings), jnp.arange(count), rows)
    return jax.nn.logsumexp(sums) - jnp.log(float(count * (count - 1)))


def unit(embeddings: Array) -> Array:
    """x / |x| along the last axis, float32; 0 with gradient 0 where |x| is below 1e-12."""
    x = embeddings.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    tiny = square < 1e-24
    return jnp.where(tiny, 0.0, x / jnp.sqrt(jnp.where(tiny, 1.0, square)))


def _supervised(
    loss: Callable[[Array, Array, Array, Array], Array],
    embeddings: Array,
    labels: Array,
    rows: RowMap,
) -> Array:
    """Mean over an image's anchors of loss(anchor, all anchors, of its class?, not itself?)."""
    batch, views = embeddings.shape[:2]
    if views < 2:
        raise ValueError(f"supcon: {views} view an image has no positive: use 2 or more")
    if labels.shape != (batch,):
        raise ValueError(f"supcon: labels {labels.shape} of {batch} images: use ({batch},)")

    def row(own: PyTree, everyone: PyTree) -> Array:
        (x, label, number), (z, classes, numbers) = own, everyone
        return loss(x, z, classes == label, numbers != number)

    z = _anchors(unit(embeddings))
    anchors = (z, jnp.repeat(labels, views), jnp.arange(len(z)))
    return rows(row, anchors).reshape(batch, views).mean(1)


def _log_sum_others(
    score: Callable[[Array, Array], Array], z: Array, group: Array, rows: RowMap
) -> Array:
    """log of the sum of exp(score(z_i, z)_j) over j of other groups: [R, P], int [R] -> [R]."""

    def row(own: PyTree, everyone: PyTree) -> Array:
        (x, mine), (z, groups) = own, everyone
        return jax.nn.logsumexp(jnp.where(groups != mine, score(x, z), -jnp.inf))

    return rows(row, (z, group))


def _inner(x: Array, z: Array) -> Array:
    """<x, z_j> in full float32, which a GPU's or TPU's default is not: [P], [R, P] -> [R]."""
    return jnp.matmul(x, z.T, precision=jax.lax.Precision.HIGHEST)


def _anchors(z: Array) -> Array:
    """[B, V, P] -> [B V, P], an image's views beside each other: all on the image's device."""
    return z.reshape(-1, z.shape[-1])


def _check(embeddings: Array, temperature: float) -> None:
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings {embeddings.shape}: use [B, views, P]")
    if len(embeddings) < 2:
        raise ValueError(
            f"a contrastive loss needs negatives: got a batch of {len(embeddings)}, use 2 or more"
        )
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: use a value above 0, such as 0.5")
