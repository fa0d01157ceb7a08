"""Golden nt_xent: NT-Xent of CSI, lightly and pytorch-metric-learning, and Winkens Eq. 1."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.contrastive import nt_xent


def _moved_by_csi_eps(z, temperature):
    """How far the 1e-8 that CSI's code adds in the log moves its loss: float64, at most 0."""
    z = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    shares = np.exp(z @ z.T / temperature)
    np.fill_diagonal(shares, 0.0)
    shares /= shares.sum(1, keepdims=True)
    other = (np.arange(len(z)) + len(z) // 2) % len(z)
    return -np.log1p(1e-8 / shares[np.arange(len(z)), other]).mean()


def test_nt_xent(golden):
    g = golden("nt_xent")
    z = jnp.asarray(g["z"], jnp.float32)
    images = len(z) // 2
    cases = sorted({key.split("/")[0] for key in g if "/" in key})
    assert cases

    for case in cases:
        temperature = float(case.removeprefix("T"))

        def winkens(z, temperature=temperature):
            pairs = z.reshape(2, images, -1).swapaxes(0, 1)
            each = 2 * nt_xent(pairs, temperature=temperature)
            return each.mean(), each

        (loss, each), grad = jax.jit(jax.value_and_grad(winkens, has_aux=True))(z)
        np.testing.assert_allclose(loss, g[f"{case}/winkens_loss"], rtol=1e-5)
        np.testing.assert_allclose(each, g[f"{case}/winkens_per_sample"], rtol=1e-5)
        expected = g[f"{case}/grad_z_winkens"]
        np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        mean = loss / 2
        np.testing.assert_allclose(mean, g[f"{case}/mean_form_loss"], rtol=1e-5)
        for name in ("lightly_loss", "pml_loss"):  # float32: a log near 0 is known to 1e-7
            np.testing.assert_allclose(mean, g[f"{case}/{name}"], rtol=1e-5, atol=1e-7)
        csi = mean + _moved_by_csi_eps(g["z"], temperature)
        np.testing.assert_allclose(csi, g[f"{case}/csi_loss"], rtol=1e-5)
