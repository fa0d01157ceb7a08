"""Contrastive losses: pair by pair in NumPy, closed forms, gradients, invariance, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair_by_pair import LABELS, LOSSES, B, P, T, all_losses, brute_force, brute_gradient, close
from pair_by_pair import example as pairs

from ood_jax import sharding
from ood_jax.losses.contrastive import (
    alignment,
    nt_xent,
    supcon,
    supcon_with_self,
    uniformity,
    whole_batch,
)


@pytest.fixture(scope="module")
def plain():
    return all_losses(whole_batch, pairs())


@pytest.mark.parametrize("name", LOSSES)
def test_numpy(plain, name):
    values, grad = plain[name]
    assert values.dtype == np.float32
    assert values.shape == (() if name == "uniformity" else (B,))
    close(values, brute_force(name, pairs()))
    close(grad, brute_gradient(name, pairs()))


@pytest.mark.parametrize("name", ["supcon", "supcon_with_self"])
def test_three_views(name):
    close(jax.jit(LOSSES[name])(pairs(views=3)), brute_force(name, pairs(views=3)))


@jax.jit
def _closed_forms():
    apart = jnp.repeat(jnp.eye(B)[:, None], 2, axis=1)  # views equal, images orthogonal
    same = jnp.ones((B, 2, P))
    opposite = jnp.stack([same[:, 0], -same[:, 0]], axis=1)
    each = jnp.arange(B)
    return {
        "apart": nt_xent(apart, temperature=T),
        "apart, supcon": supcon(apart, each, temperature=T),
        "apart, small": nt_xent(apart, temperature=0.05),
        "same": nt_xent(same, temperature=T),
        "same, supcon": supcon(same, jnp.zeros(B), temperature=T),
        "same, with self": supcon_with_self(same, each, temperature=T),
        "alignment": alignment(apart),
        "alignment, opposite": alignment(opposite),
        "uniformity": uniformity(jnp.eye(B)),
        "uniformity, opposite": uniformity(opposite[0], t=3.0),
    }


def test_closed_forms():
    found = _closed_forms()
    apart = np.log1p((2 * B - 2) * np.exp(-1 / T))
    for name, expected in {
        "apart": apart,
        "apart, supcon": apart,
        # 3e-8, which the difference of two numbers near 1 / T would lose
        "apart, small": np.log1p((2 * B - 2) * np.exp(-1 / 0.05)),
        "same": np.log(2 * B - 1),
        "same, supcon": np.log(2 * B - 1),
        "same, with self": (np.log(2 * B - 1) - np.log(1e-8)) / 2,
        "alignment, opposite": 4.0,
        "uniformity": -2.0,
        "uniformity, opposite": -12.0,
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(found["alignment"], 0.0, atol=1e-12)


def test_invariance():
    """To the order of images and views, to lengths and to the names of classes."""
    z, order = pairs(), np.random.default_rng(2).permutation(B)

    @jax.jit
    def all_of(z, labels):
        supervised = {loss: loss(z, labels, temperature=T) for loss in (supcon, supcon_with_self)}
        per_image = [nt_xent(z, temperature=T), alignment(z), *supervised.values()]
        return jnp.stack(per_image), uniformity(z.reshape(-1, P))

    each, whole = all_of(z, LABELS)
    moved, moved_whole = all_of(7.0 * z[order, ::-1], 10 - LABELS[order])
    np.testing.assert_allclose(moved, each[:, order], rtol=1e-5)
    np.testing.assert_allclose(moved_whole, whole, rtol=1e-5)


def test_zero_row():
    """A zero embedding is orthogonal to all and has no gradient; the others keep theirs."""
    z = pairs()
    z[0, 0] = 0
    for name, (values, grad) in all_losses(whole_batch, z).items():
        assert np.isfinite(values).all() and np.isfinite(grad).all(), name
        assert not grad[0, 0].any() and grad[1, 0].any(), name


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures(temperature):
    """Finite, also where the batch is of one class and bfloat16."""
    one_class = jnp.zeros(B, jnp.int32)

    def total(z):
        losses = (
            nt_xent(z, temperature=temperature),
            supcon(z, one_class, temperature=temperature),
            supcon_with_self(z, one_class, temperature=temperature),
        )
        assert all(loss.dtype == jnp.float32 for loss in losses)
        return sum(loss.sum() for loss in losses)

    value, grad = jax.jit(jax.value_and_grad(total))(jnp.asarray(pairs(), jnp.bfloat16))
    assert np.isfinite(value) and grad.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(grad, np.float32)).all()


def test_errors():
    z, one_view = pairs(), pairs(views=1)
    for found, loss in {
        "needs negatives: got a batch of 1, use 2 or more": lambda: nt_xent(z[:1], temperature=T),
        "batch of 1, use 2": lambda: supcon(z[:1], LABELS[:1], temperature=T),
        "temperature = 0: use a value above 0": lambda: nt_xent(z, temperature=0),
        "temperature = nan": lambda: supcon(z, LABELS, temperature=float("nan")),
        "temperature = -1": lambda: supcon_with_self(z, LABELS, temperature=-1),
        r"embeddings \(8, 5\): use \[B, views, P\]": lambda: nt_xent(z[:, 0], temperature=T),
        "1 views an image: use 2": lambda: nt_xent(one_view, temperature=T),
        "1 view an image has no positive": lambda: supcon(one_view, LABELS, temperature=T),
        r"labels \(7,\) of 8 images": lambda: supcon(z, LABELS[:7], temperature=T),
        r"labels \(8, 1\) of 8": lambda: supcon_with_self(z, LABELS[:, None], temperature=T),
        r"alignment: embeddings \(8, 1, 5\)": lambda: alignment(one_view),
        r"uniformity: embeddings \(1, 5\)": lambda: uniformity(z[0, :1]),
        r"uniformity: embeddings \(8, 2, 5\)": lambda: uniformity(z),
        "uniformity: t = 0": lambda: uniformity(z[0], t=0),
        "block = 0 rows at once": lambda: sharding.each_row(sharding.make_mesh(1), 0),
    }.items():
        with pytest.raises(ValueError, match=found) as error:
            loss()
        assert "\n" not in str(error.value)
