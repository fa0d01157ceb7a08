"""Golden mcd: entropies over classes and the margin loss; NOT those over the batch."""

import re

import jax
import numpy as np

from ood_jax.losses.discrepancy import discrepancy, entropy, margin_loss


def test_entropies_are_over_classes(golden):
    g = golden("mcd")
    for i in "12":
        found = np.asarray(entropy(g[f"logits{i}"]))
        np.testing.assert_allclose(found, g[f"entropy{i}"], rtol=1e-5, atol=1e-6)
        wrong = g[f"openood_entropy{i}_KNOWN_WRONG"]
        assert found.shape != wrong.shape or not np.allclose(found, wrong, rtol=1e-3)
        over_batch = np.asarray(entropy(g[f"logits{i}"].T))  # the golden's own mistake, to be sure
        np.testing.assert_allclose(over_batch, wrong, rtol=1e-4, atol=1e-6)
    apart = discrepancy(g["logits1"], g["logits2"])
    np.testing.assert_allclose(apart.mean(), g["mean_discrepancy"], rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(g["logits1"], -1), g["pred"])


def test_margin_loss(golden):
    g = golden("mcd")
    cases = sorted({key.split("/")[0] for key in g if re.match(r"margin[\d.]+/", key)})
    assert cases

    def loss(first, second, margin):
        return margin_loss(discrepancy(first, second), margin=margin)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    told = 0
    for case in cases:
        margin = float(case.removeprefix("margin"))
        value, grads = both(g["logits1"], g["logits2"], margin)
        np.testing.assert_allclose(value, g[f"{case}/loss"], rtol=1e-5, atol=1e-6, err_msg=case)
        for i, grad in zip("12", grads, strict=True):
            expected = g[f"{case}/grad_logits{i}"]
            bound = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(grad, expected, atol=bound, rtol=0, err_msg=case)
        others = ("openood_batch_axis_loss_KNOWN_WRONG", "mean_of_relu_NOT_official")
        for other in (g[f"{case}/{name}"] for name in others):
            if abs(g[f"{case}/loss"] - other) > 1e-3:  # else the hinges are closed, or all open
                assert abs(value - other) > 5e-4
                told += 1
    assert told
