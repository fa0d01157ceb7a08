"""Golden dino_head: the official DINOHead, outputs and gradients, gain trained and fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.models.heads import DinoHead
from ood_jax.models.torch_names import from_torch, in_torch_layout


def _params(g, case):
    prefix = f"{case}/param/"
    weights = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
    tree, _, unknown = from_torch(weights)
    assert not unknown
    # The first set stores the gain as it was after being replaced in place: the outputs and
    # gradients beside it were made with the official initial gain, which is 1.
    gain = weights["last_layer.weight_g"]
    if np.array_equal(gain, g[f"{case}/weight_g_changed"]):
        tree["head"]["last"]["gain"] = np.ones(len(gain), np.float32)
    return tree["head"]


def _head(params, train_gain):
    layers = sum(name.startswith("mlp_") for name in params)
    bottleneck, outputs = params["last"]["direction"].shape
    hidden = params["mlp_0"]["kernel"].shape[1]
    return DinoHead(layers, hidden, bottleneck, outputs, train_gain, jnp.dtype("float32"))


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("case", ["norm0", "norm1"])
def test_dino_head(golden, case):
    g = golden("dino_head")
    params = _params(g, case)
    trains = bool(g[f"{case}/g_trainable"])
    head = _head(params, trains)
    if not trains:
        params = {**params, "last": {"direction": params["last"]["direction"]}}

    def value(params, x):
        return jnp.sum(
            head.apply({"params": params}, x, train=False).logits * g[f"{case}/cotangent"]
        )

    _close(
        head.apply({"params": params}, g[f"{case}/input"], train=False).logits, g[f"{case}/output"]
    )
    grads, grad_input = jax.grad(value, (0, 1))(params, jnp.asarray(g[f"{case}/input"]))
    _close(grad_input, g[f"{case}/grad_input"])
    names = [k.removeprefix(f"{case}/grad/") for k in g if k.startswith(f"{case}/grad/")]
    assert len(names) == len(jax.tree.leaves(params))
    for name in names:
        _close(in_torch_layout({"head": grads}, name), g[f"{case}/grad/{name}"])


@pytest.mark.parametrize("case", ["norm0", "norm1"])
def test_gain(golden, case):
    g = golden("dino_head")
    params = _params(g, case)
    gain = g[f"{case}/weight_g_changed"][:, 0]
    params = {**params, "last": {**params["last"], "gain": gain}}
    output = _head(params, True).apply({"params": params}, g[f"{case}/input"], train=False).logits
    _close(output, g[f"{case}/output_after_g"])
