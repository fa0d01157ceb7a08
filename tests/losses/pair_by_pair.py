"""The contrastive losses in float64, a pair at a time, as their papers or codes write them."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.contrastive import (
    alignment,
    nt_xent,
    supcon,
    supcon_with_self,
    uniformity,
    whole_batch,
)

B, P, T = 8, 5, 0.2
LABELS = np.array([0, 1, 0, 2, 1, 3, 0, 2], np.int32)  # of class 3 there is one image
LOSSES = {
    "nt_xent": lambda z, rows=whole_batch: nt_xent(z, temperature=T, rows=rows),
    "supcon": lambda z, rows=whole_batch: supcon(z, LABELS, temperature=T, rows=rows),
    "supcon_with_self": lambda z, rows=whole_batch: supcon_with_self(
        z, LABELS, temperature=T, rows=rows
    ),
    "alignment": lambda z, rows=whole_batch: alignment(z),
    "uniformity": lambda z, rows=whole_batch: uniformity(z[:, 0], t=2.0, rows=rows),
}
WEIGHTS = 1 + np.arange(B) / B  # of images, so that a gradient sent to the wrong one shows


def example(views=2):
    return np.random.default_rng(0).normal(size=(B, views, P)).astype(np.float32)


def brute_force(name, z):
    z = z.astype(np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    if name == "alignment":
        return np.array([np.linalg.norm(a - b) ** 2 for a, b in z])
    if name == "uniformity":
        pairs = [(i, j) for i in range(len(z)) for j in range(i)]
        return np.log(np.mean([np.exp(-2 * np.sum((z[i, 0] - z[j, 0]) ** 2)) for i, j in pairs]))
    anchors = list(np.ndindex(z.shape[:2]))
    losses = [_anchor(name, z, anchor, anchors) for anchor in anchors]
    return np.reshape(losses, z.shape[:2]).mean(1)


def _anchor(name, z, anchor, anchors):
    others = [a for a in anchors if a != anchor]
    cosine = {a: z[anchor] @ z[a] for a in anchors}
    if name == "supcon_with_self":
        power = {a: np.exp((cosine[a] - max(cosine.values())) / T) for a in anchors}
        total = sum(power[a] for a in others) + 1e-8
        of_class = [a for a in anchors if LABELS[a[0]] == LABELS[anchor[0]]]
        shares = [power[a] / total if a != anchor else 0.0 for a in of_class]
        return np.mean([-np.log(share + 1e-8) for share in shares])
    total = sum(np.exp(cosine[a] / T) for a in others)
    if name == "nt_xent":
        return -np.log(np.exp(cosine[anchor[0], 1 - anchor[1]] / T) / total)
    positive = [a for a in others if LABELS[a[0]] == LABELS[anchor[0]]]
    return -np.mean([np.log(np.exp(cosine[a] / T) / total) for a in positive])


def brute_gradient(name, z, weights=WEIGHTS):
    """d sum_i w_i loss_i / dz by central differences."""
    grad, step = np.zeros(z.shape), 1e-5
    for at in np.ndindex(*z.shape):
        moved = []
        for sign in (1, -1):
            other = z.astype(np.float64)
            other[at] += sign * step
            moved.append(np.sum(weights * brute_force(name, other)))
        grad[at] = (moved[0] - moved[1]) / (2 * step)
    return grad


def all_losses(rows, z):
    """{name: (values, gradient of their weighted sum)} of ood_jax, compiled together."""

    def both(loss):
        def total(z):
            values = loss(z, rows)
            return jnp.sum(WEIGHTS * values), values

        (_, values), grad = jax.value_and_grad(total, has_aux=True)(z)
        return values, grad

    found = jax.jit(lambda z: {name: both(loss) for name, loss in LOSSES.items()})(z)
    return jax.tree.map(np.asarray, found)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
