"""Golden oecl: NTXentOE of OECL's code, its loss and gradients; scores: test_oecl_scores.py."""

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.losses.contrastive import nt_xent
from ood_jax.losses.norm import norm_penalty


def test_oecl_losses(golden):
    g = golden("oecl")
    cases = sorted({key.split("/")[0] for key in g if "/" in key})
    assert cases
    z, outliers = (jnp.asarray(g[key], jnp.float32) for key in ("embedding", "embedding_oe"))
    zero, temperature = int(g["zero_row"]), float(g["temperature"])

    def loss(z, outliers, alpha):
        pairs = z.reshape(2, len(z) // 2, -1).swapaxes(0, 1)  # views i and i + N
        contrastive = nt_xent(pairs, temperature=temperature).mean()
        norm = norm_penalty(outliers).mean()
        parts = {
            "contrastive": contrastive,
            "id_norm_mean": norm_penalty(z).mean(),
            "oe_norm_mean": norm,
        }
        return contrastive + alpha * norm, parts

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    checked = set()
    for case in cases:
        (total, parts), grads = both(z, outliers, float(case.removeprefix("alpha")))
        for name, value in ({"total": total} | parts).items():
            np.testing.assert_allclose(value, g[f"{case}/{name}"], rtol=1e-5, err_msg=case)
            checked.add(f"{case}/{name}")
        for name, grad in zip(("grad_embedding", "grad_embedding_oe"), grads, strict=True):
            expected = g[f"{case}/{name}"]
            bound = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(grad, expected, atol=bound, rtol=0, err_msg=case)
            checked.add(f"{case}/{name}")
        assert not np.any(outliers[zero]) and not np.any(grads[1][zero])
    assert checked == {key for key in g if "/" in key}
