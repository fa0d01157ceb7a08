"""Golden nt_xent: NT-Xent of CSI, lightly and pytorch-metric-learning, and Winkens Eq. 1."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.contrastive import nt_xent

CSI_EPS_TEMPERATURE = 0.1  # from here down the 1e-8 in CSI's log shows (README: rel 1e-4)


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
        for name in ("mean_form_loss", "lightly_loss", "pml_loss"):
            np.testing.assert_allclose(loss / 2, g[f"{case}/{name}"], rtol=1e-5, err_msg=name)
        csi = 1e-4 if temperature <= CSI_EPS_TEMPERATURE else 1e-5
        np.testing.assert_allclose(loss / 2, g[f"{case}/csi_loss"], rtol=csi)
