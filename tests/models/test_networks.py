"""Networks beside the golden ones: stages, stems, heads, LayerScale, BatchNorm over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.config import base
from ood_jax.models import build, init_params
from ood_jax.models.batch_norm import EPSILON, MOMENTUM, BatchNorm
from ood_jax.models.resnet import ResNet

RNG = np.random.default_rng(0)


def _config(**settings):
    c = base()
    c.model.image_size, c.model.patch, c.model.width, c.model.depth, c.model.heads = 16, 8, 8, 2, 2
    c.model.drop_path = 0.0
    c.head.hidden, c.head.bottleneck, c.head.outputs, c.head.layers = 16, 6, 5, 2
    c.update_from_flattened_dict({key.replace("__", "."): v for key, v in settings.items()})
    return c


def _apply(net, params, stats, images):
    return jax.jit(partial(net.apply, train=False))(params, stats, images)[0]


def _outputs(config, images):
    net = build(config)
    params, stats = init_params(net, config)
    return net, params, _apply(net, params, stats, images)


IMAGES = RNG.normal(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("head", "train_gain"),
    [("dino", True), ("dino", False), ("linear", True), ("projection", True)],
)
def test_last_layer_gives_the_logits(head, train_gain):
    config = _config(head__name=head, head__train_gain=train_gain, model__depth=1)
    net = build(config)
    params, stats = init_params(net, config)
    if "gain" in params["head"].get("last", {}):
        params["head"]["last"]["gain"] = jnp.linspace(0.5, 2, 5)
    if head != "dino":
        params["head"]["linear"]["bias"] = jnp.linspace(-1, 1, 5)
    outputs = _apply(net, params, stats, IMAGES)
    layer = net.last_layer(params)
    assert layer.reads == ("projections" if head == "dino" else "features")
    assert layer.kernel.dtype == layer.bias.dtype == np.float32
    inputs = getattr(outputs, layer.reads)
    np.testing.assert_allclose(inputs @ layer.kernel + layer.bias, outputs.logits, atol=1e-5)
    assert (outputs.projections is None) == (head == "linear")


def test_no_head_has_no_last_layer():
    config = _config(head__name="none")
    net = build(config)
    params, _ = jax.eval_shape(lambda: init_params(net, config))
    outputs, _ = jax.eval_shape(partial(net.apply, train=False), params, {}, IMAGES)
    assert net.last_layer is None and outputs.logits is None and set(params) == {"trunk"}


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("hidden", [0, 6])
def test_projection_head_against_numpy(batch_norm, hidden):
    settings = {"head__hidden": hidden, "head__batch_norm": batch_norm, "head__bottleneck": 3}
    config = _config(head__name="projection", head__second_outputs=4, model__depth=1, **settings)
    net = build(config)
    params, stats = init_params(net, config)
    outputs, moved = net.apply(params, stats, IMAGES, train=True, key=jax.random.key(0))
    x, head = np.asarray(outputs.features, np.float64), jax.device_get(params["head"])
    assert ("head" in moved) == batch_norm

    def linear(y, name):
        return y @ head[name]["kernel"] + head[name].get("bias", 0.0)

    y = linear(x, "mlp_0")
    assert y.shape == (3, hidden or 8)
    if batch_norm:
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    y = linear(np.maximum(y, 0), "mlp_1")
    np.testing.assert_allclose(outputs.projections, y, atol=2e-4)
    np.testing.assert_allclose(outputs.logits, linear(x, "linear"), atol=1e-5)
    np.testing.assert_allclose(outputs.second_logits, linear(x, "second"), atol=1e-5)


def test_projection_head_may_have_no_classifier():
    config = _config(head__name="projection", head__outputs=0, model__depth=1)
    net, _, outputs = _outputs(config, IMAGES)
    assert outputs.logits is None and outputs.second_logits is None and net.last_layer is None


def test_linear_logits_are_summed_in_float32():
    _, _, outputs = _outputs(_config(head__name="linear", model__dtype="bfloat16"), IMAGES)
    assert outputs.logits.dtype == np.float32
    assert not np.array_equal(outputs.logits, outputs.logits.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_of_a_vit(dtype):
    _, params, outputs = _outputs(_config(model__dtype=dtype), IMAGES)
    assert [x.shape for x in outputs.stages] == [(3, 5, 8)] * 2
    assert {x.dtype for x in outputs.stages} == {np.dtype("float32")}
    norm = params["trunk"]["norm"]
    x = outputs.stages[-1][:, 0]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(outputs.features, x, atol=1e-5 if dtype == "float32" else 0.03)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, [(16, 8), (16, 8), (8, 16), (4, 32), (2, 64)]),
        ({"model__stride": 2}, [(8, 8), (8, 8), (4, 16), (2, 32), (1, 64)]),
        ({"model__stem": "imagenet"}, [(4, 8), (4, 8), (2, 16), (1, 32), (1, 64)]),
        ({"model__depth": 50}, [(16, 8), (16, 32), (8, 64), (4, 128), (2, 256)]),
    ],
)
def test_stages_of_a_resnet(settings, shapes):
    settings = {"model__name": "resnet", "model__depth": 10, **settings}
    config = _config(**settings, head__name="none")
    net = build(config)
    params, stats = jax.eval_shape(lambda: init_params(net, config))
    outputs, _ = jax.eval_shape(partial(net.apply, train=False), params, stats, IMAGES)
    assert [x.shape for x in outputs.stages] == [(3, size, size, c) for size, c in shapes]
    assert outputs.features.shape == (3, shapes[-1][1])


def test_features_are_the_mean_of_the_last_stage():
    trunk = ResNet((0, 1), 8, 2, "group", jnp.dtype("float32"))
    variables = jax.jit(trunk.init, static_argnums=2)(jax.random.key(0), IMAGES, False)
    apply = jax.jit(partial(trunk.apply, mutable=["intermediates"]), static_argnums=2)
    features, sown = apply(variables, IMAGES, False)
    stages = sown["intermediates"]["stages"]
    assert len(stages) == 3
    np.testing.assert_allclose(features, stages[-1].mean((1, 2)), rtol=1e-6)


def test_unread_stages_cost_nothing():
    """Compiled, a network whose stages nobody reads is the network without them."""
    config = _config(model__depth=1)
    net = build(config)
    params, _ = jax.eval_shape(lambda: init_params(net, config))

    def value(params, strip):
        outputs, _ = net.apply(params, {}, IMAGES, train=True, key=jax.random.key(0))
        outputs = outputs.replace(stages=()) if strip else outputs
        return outputs.logits.sum(), outputs.features.sum() if strip else outputs

    compiled = [
        jax.jit(lambda p, strip=strip: jax.grad(value, has_aux=True)(p, strip)[0])
        .lower(params)
        .compile()
        for strip in (True, False)
    ]
    flops = [c.cost_analysis()["flops"] for c in compiled]
    memory = [c.memory_analysis().temp_size_in_bytes for c in compiled]
    assert flops[0] == flops[1] and memory[0] == memory[1]


def test_imagenet_stem_against_numpy():
    stem = ResNet((0, 0, 0, 0), 4, 1, "batch", jnp.dtype("float32"), "basic", "imagenet")
    images = RNG.normal(size=(2, 20, 20, 3)).astype(np.float32)
    variables = jax.jit(stem.init, static_argnums=2)(jax.random.key(0), images, False)
    kernel = np.asarray(variables["params"]["conv_1"]["kernel"], np.float64)
    padded = np.pad(images.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
    conv = np.zeros((2, 10, 10, 4))
    for i in range(10):
        for j in range(10):
            patch = padded[:, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
            conv[:, i, j] = np.einsum("bxyc,xyck->bk", patch, kernel)
    conv = np.maximum(conv / np.sqrt(1 + 1e-5), 0)
    padded = np.pad(conv, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.stack(
        [
            [padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(5)]
            for i in range(5)
        ]
    ).transpose(2, 0, 1, 3)
    found = jax.jit(stem.apply, static_argnums=2)(variables, images, False)
    np.testing.assert_allclose(found, pooled.mean((1, 2)), rtol=1e-5)


def test_layer_scale_scales_the_residual_branches():
    """A network with factors is the network without, its branches' last layers scaled."""
    plain, scaled = _config(head__name="none"), _config(head__name="none", model__layer_scale=0.3)
    net = build(scaled)
    params, _ = init_params(net, scaled)
    folded = jax.tree.map(np.asarray, params["trunk"])
    for name in ("block_0", "block_1"):
        for i, layer in ((1, ("attention", "out")), (2, ("mlp_2",))):
            scale = params["trunk"][name][f"layer_scale_{i}"]["scale"]
            np.testing.assert_array_equal(scale, np.full(8, 0.3, np.float32))
            scale = params["trunk"][name][f"layer_scale_{i}"]["scale"] = jnp.linspace(-1, 2, 8)
            del folded[name][f"layer_scale_{i}"]
            node = folded[name]
            for part in layer:
                node = node[part]
            node["kernel"], node["bias"] = node["kernel"] * scale, node["bias"] * scale
    found = _apply(net, params, {}, IMAGES)
    expected = _apply(build(plain), {"trunk": folded}, {}, IMAGES)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-5)


def test_batch_norm_is_of_the_whole_sharded_batch():
    x = (5 + 3 * RNG.normal(size=(8, 4, 3, 6))).astype(np.float32)
    module = BatchNorm(train=True, dtype=jnp.dtype("float32"))
    variables = module.init(jax.random.key(0), x)
    assert float(variables["batch_stats"]["var"].sum()) == 6  # untouched by init

    def apply(x):
        return module.apply(variables, x, mutable=["batch_stats"])

    mesh = sharding.make_mesh(2)
    y, updated = jax.jit(apply)(sharding.global_batch(mesh, {"x": x})["x"])
    rows = x.astype(np.float64).reshape(-1, 6)
    expected = (x - rows.mean(0)) / np.sqrt(rows.var(0) + EPSILON)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    running = updated["batch_stats"]
    np.testing.assert_allclose(running["mean"], MOMENTUM * rows.mean(0), rtol=1e-5)
    unbiased = 1 - MOMENTUM + MOMENTUM * rows.var(0, ddof=1)
    np.testing.assert_allclose(running["var"], unbiased, rtol=1e-5)


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(300 + RNG.normal(size=(64, 4)), jnp.bfloat16)
    module = BatchNorm(train=True, dtype=jnp.dtype("bfloat16"))
    y, updated = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    unbiased = 0.9 + 0.1 * exact.var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], unbiased, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model__name": "resnet", "model__depth": 20}, r"use 10, 18, 34, 50, 101, 152"),
        ({"model__name": "resnet", "model__depth": 18, "model__stem": "big"}, "cifar or imagenet"),
        ({"model__layer_scale": -1.0}, r"model\.layer_scale -1\.0"),
        ({"head__name": "mlp"}, "use dino, projection, linear, none"),
        ({"head__name": "linear", "head__outputs": 0}, r"head\.outputs = 0"),
        ({"head__name": "projection", "head__outputs": -1}, r"head\.outputs = -1: use 0 or more"),
    ],
)
def test_mistakes(settings, says):
    with pytest.raises(ValueError, match=says):
        build(_config(**settings))
