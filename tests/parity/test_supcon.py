"""Golden supcon: SSD's SupConLoss (with and without labels), PML's, CSI's Supervised_NT_xent."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.contrastive import nt_xent, supcon, supcon_with_self


def _close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_supcon(golden):
    g = golden("supcon")
    z, labels = jnp.asarray(g["z"], jnp.float32), jnp.asarray(g["labels"])
    images = jnp.arange(len(z))  # every image its own class: SimCLR
    cases = sorted({key.split("/")[0] for key in g if "/" in key})
    assert cases

    @jax.jit
    def all_of(z):
        return {
            case: {
                "ssd_supcon": jax.value_and_grad(_mean(supcon))(z, labels, case),
                "ssd_simclr": jax.value_and_grad(_mean(supcon))(z, images, case),
                "csi_sup": jax.value_and_grad(_mean(supcon_with_self))(z, labels, case),
                "nt_xent": nt_xent(z, temperature=_temperature(case)).mean(),
                "each": supcon(z, labels, temperature=_temperature(case)),
            }
            for case in cases
        }

    for case, found in all_of(z).items():
        scale = _temperature(case) / float(g["base_temperature"])
        for name in ("ssd_supcon", "ssd_simclr"):
            loss, grad = found[name]
            _close(loss, g[f"{case}/{name}_unscaled_loss"])
            _close(scale * loss, g[f"{case}/{name}_loss"])
            _close(scale * grad, g[f"{case}/{name}_grad"])
        _close(found["ssd_supcon"][0], g[f"{case}/pml_supcon_loss"])
        _close(found["nt_xent"], g[f"{case}/ssd_simclr_unscaled_loss"])
        _close(found["csi_sup"][0], g[f"{case}/csi_sup_loss"])
        _close(found["csi_sup"][1], g[f"{case}/csi_sup_grad"])
        count = z.shape[1] * (labels[:, None] == labels).sum(1)
        identity = (count - 1) / count * found["each"] - np.log(1e-8) / count
        _close(identity.mean(), g[f"{case}/csi_sup_from_supcon"])


def _temperature(case):
    return float(case.removeprefix("T"))


def _mean(loss):
    return lambda z, labels, case: loss(z, labels, temperature=_temperature(case)).mean()
