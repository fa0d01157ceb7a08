"""Golden vit: the official VisionTransformer at its own and at interpolated resolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.models.torch_names import from_torch
from ood_jax.models.vit import LAYER_NORM_EPS, ViT, interpolate_position


@pytest.fixture(scope="module")
def vit(golden):
    g = golden("vit")
    weights = {k.removeprefix("param/"): v for k, v in g.items() if k.startswith("param/")}
    tree, _, unknown = from_torch(weights)
    assert not unknown
    trunk = ViT(
        width=int(g["dim"]),
        depth=int(g["depth"]),
        heads=int(g["heads"]),
        patch=int(g["patch"]),
        grid=int(g["img_size"]) // int(g["patch"]),
        drop_path=0.0,
        dtype=jnp.dtype("float32"),
    )
    assert float(g["ln_eps"]) == LAYER_NORM_EPS
    return g, trunk, tree["trunk"]


def _sizes(g):
    return [int(k.removeprefix("images_")) for k in g if k.startswith("images_")]


def test_cls(vit):
    g, trunk, params = vit
    sizes = _sizes(g)
    assert len(sizes) >= 2
    for size in sizes:
        images = g[f"images_{size}"].transpose(0, 2, 3, 1)
        cls = jax.jit(lambda p, x: trunk.apply({"params": p}, x, False))(params, images)
        np.testing.assert_allclose(cls, g[f"cls_{size}"], atol=2e-5, rtol=0)


def test_position_table(vit):
    g, _, params = vit
    for size in _sizes(g):
        side = size // int(g["patch"])
        table = interpolate_position(jnp.asarray(params["position"]), side, side)
        np.testing.assert_allclose(table, g[f"pos_{size}"], atol=2e-6, rtol=0)
