"""Golden clip_and_groups: per-tensor clipping, and which parameters are decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import optim
from ood_jax.config import base
from ood_jax.models import build, init_params
from ood_jax.models.torch_names import our_name


def test_clip(golden):
    g = golden("clip_and_groups")
    # The first set stores gradients that were already clipped in place; their norms are from
    # before, so scaling to those gives back what was clipped (and changes nothing in a right file).
    grads = {}
    for name, norm in zip(map(str, g["norm_names"]), g["norms"], strict=True):
        stored = g[f"grad/{name}"].astype(np.float64)
        scale = norm / np.linalg.norm(stored) if norm else 1.0
        grads[name] = jnp.asarray(stored * scale, jnp.float32)
    assert max(g["norms"]) > float(g["clip"]) > min(g["norms"])
    transform = optim.clip_each(float(g["clip"]))
    clipped, _ = transform.update(grads, transform.init(grads))
    for name, value in clipped.items():
        expected = g[f"clipped/{name}"]
        scale = np.abs(expected).max(initial=1e-12)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("case, train_gain", [("norm0", True), ("norm1", False)])
def test_groups(golden, case, train_gain):
    g = golden("clip_and_groups")
    shapes = {
        str(name): tuple(int(n) for n in str(shape).strip("()[]").split(",") if n.strip())
        for name, shape in zip(g["all_names"], g["all_shapes"], strict=True)
    }
    config = base()
    dim, _, patch, _ = shapes["backbone.patch_embed.proj.weight"]
    del patch
    config.model.width, config.model.heads = dim, 1
    config.model.depth = len({n.split(".")[2] for n in shapes if "blocks" in n})
    config.model.patch = shapes["backbone.patch_embed.proj.weight"][-1]
    tokens = shapes["backbone.pos_embed"][1] - 1
    config.model.image_size = config.model.patch * round(tokens**0.5)
    config.head.hidden = shapes["head.mlp.0.weight"][0]
    config.head.layers = sum(n.startswith("head.mlp") and n.endswith("weight") for n in shapes)
    config.head.outputs, config.head.bottleneck = shapes["head.last_layer.weight_v"]
    config.head.train_gain = train_gain
    params, _ = init_params(build(config), config)

    exempt = optim.matches(config.optim.no_decay, params)
    flat = jax.tree_util.tree_leaves_with_path(exempt)
    ours = {optim.path_name(path): exempted for path, exempted in flat}
    expected = {our_name(str(n)): False for n in g[f"{case}/regularized"]}
    expected |= {our_name(str(n)): True for n in g[f"{case}/not_regularized"]}
    assert ours == expected
