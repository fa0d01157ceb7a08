"""Golden club: CLUB's bound and likelihood, with gradients to q's parameters and to y."""

import jax
import numpy as np
import pytest

from ood_jax.losses.mutual_information import club, log_likelihood
from ood_jax.models.gaussian_mlp import GaussianMLP

PARTS = {"p_mu": "mean", "p_logvar": "log_variance"}


def ours(name):
    """p_mu.2.weight -> mean_1, kernel: PyTorch counts the activations between."""
    part, number, kind = name.split(".")
    return f"{PARTS[part]}_{int(number) // 2}", "kernel" if kind == "weight" else "bias"


def q_of(g, case):
    """The network and its parameters."""
    names = [k.removeprefix(f"{case}/param/") for k in g if k.startswith(f"{case}/param/")]
    params = {}
    for name in names:
        layer, leaf = ours(name)
        value = g[f"{case}/param/{name}"]
        params.setdefault(layer, {})[leaf] = value.T if leaf == "kernel" else value
    widths = {
        part: tuple(
            params[f"{part}_{i}"]["bias"].size for i in range(sum(part == n[:-2] for n in params))
        )
        for part in PARTS.values()
    }
    net = GaussianMLP(widths["mean"][-1], widths["mean"][:-1], widths["log_variance"][:-1])
    return net, params, names


@pytest.mark.parametrize("case", ["club", "deep_club"])
def test_club(golden, case):
    g = golden("club")
    net, params, names = q_of(g, case)
    x, y = g["x"], g["y"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    )

    def bound(params, y):
        return club(*net.apply({"params": params}, x), y).mean()

    def learning(params, y):
        return -log_likelihood(*net.apply({"params": params}, x), y).mean()

    mean, log_variance = net.apply({"params": params}, x)
    close(mean, g[f"{case}/mu"])
    close(log_variance, g[f"{case}/logvar"])
    value, (grads, grad_y) = jax.jit(jax.value_and_grad(bound, argnums=(0, 1)))(params, y)
    np.testing.assert_allclose(value, g[f"{case}/bound"], rtol=1e-5)
    close(grad_y, g[f"{case}/grad_y_bound"])
    loss, learnt = jax.jit(jax.value_and_grad(learning))(params, y)
    np.testing.assert_allclose(loss, g[f"{case}/learning_loss"], rtol=1e-5)
    np.testing.assert_allclose(-loss, g[f"{case}/loglikelihood"], rtol=1e-5)
    checked = {f"{case}/{k}" for k in ("mu", "logvar", "bound", "grad_y_bound", "learning_loss")}
    checked.add(f"{case}/loglikelihood")
    for name in names:
        layer, leaf = ours(name)
        for found, kind in ((grads, "grad_bound"), (learnt, "grad_learning")):
            grad = np.asarray(found[layer][leaf])
            close(grad.T if leaf == "kernel" else grad, g[f"{case}/{kind}/{name}"])
            checked.add(f"{case}/{kind}/{name}")
        checked.add(f"{case}/param/{name}")
    assert {k for k in g if k.startswith(f"{case}/")} == checked


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
