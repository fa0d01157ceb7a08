"""DenseNet-BC and Wide ResNets beside the golden ones: the papers' sizes, stages, files, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import Storages, ordered

from ood_jax.config import base
from ood_jax.models import build, init_params
from ood_jax.models.torch_names import FAMILIES, in_torch_layout
from ood_jax.models.weights import load_weights

NETWORKS = ("densenet", "wide_resnet")


def _config(name, depth, width, size=32, **settings):
    c = base("supervised")
    c.model.name, c.model.depth, c.model.width, c.model.image_size = name, depth, width, size
    c.head.name, c.head.outputs = "linear", 10
    c.update_from_flattened_dict({key.replace("__", "."): v for key, v in settings.items()})
    return c


def _shapes(config, batch=3):
    """(params, outputs) as shapes."""
    net = build(config)
    size = config.model.image_size
    params, stats = jax.eval_shape(lambda: init_params(net, config))
    images = jnp.zeros((batch, size, size, 3))
    return params, jax.eval_shape(partial(net.apply, train=False), params, stats, images)[0]


@pytest.mark.parametrize(
    ("name", "depth", "width", "features", "count"),
    [
        ("densenet", 100, 12, 342, 769_162),  # Huang et al. 2017, Table 2: .8M
        ("wide_resnet", 28, 160, 640, 36_479_194),  # Zagoruyko & Komodakis 2016, Table 4: 36.5M
        ("wide_resnet", 40, 32, 128, 2_243_546),  # the same: 2.2M
    ],
)
def test_the_papers_sizes(name, depth, width, features, count):
    params, outputs = _shapes(_config(name, depth, width))
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert outputs.features.shape == (3, features) and outputs.logits.shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "stride", "shapes"),
    [
        ("densenet", 1, [(32, 24), (16, 30), (8, 33), (8, 69), (8, 69)]),
        ("densenet", 2, [(16, 24), (8, 30), (4, 33), (4, 69), (4, 69)]),
        ("wide_resnet", 1, [(32, 16), (32, 32), (16, 64), (8, 128), (8, 128)]),
        ("wide_resnet", 2, [(16, 16), (16, 32), (8, 64), (4, 128), (4, 128)]),
    ],
)
def test_stages(name, stride, shapes):
    """Depth 22, three layers or blocks a stage; growth rate 12 or twice as wide."""
    config = _config(name, 22, {"densenet": 12, "wide_resnet": 32}[name], model__stride=stride)
    _, outputs = _shapes(config)
    assert [x.shape for x in outputs.stages] == [(3, size, size, c) for size, c in shapes]
    assert {x.dtype for x in outputs.stages} == {np.dtype("float32")}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_features_are_the_mean_of_the_last_stage_and_training_moves_statistics(name, norm):
    config = _config(name, 10, 32, 8, model__norm=norm, model__dtype="bfloat16")
    net = build(config)
    params, stats = init_params(net, config)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(partial(net.apply, train=True))
    outputs, moved = apply(params, stats, images, key=jax.random.key(0))
    assert outputs.features.dtype == outputs.logits.dtype == np.float32
    np.testing.assert_allclose(outputs.features, outputs.stages[-1].mean((1, 2)), rtol=1e-5)
    assert float(outputs.stages[-1].min()) == 0 < float(outputs.features.max())
    norms = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "norm" in str(path)]
    assert len(jax.tree.leaves(moved)) == (len(norms) if norm == "batch" else 0)
    for old, new in zip(*map(jax.tree.leaves, (stats, moved)), strict=True):
        assert np.abs(old - new).max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_are_the_official_ones(name):
    """Normal with variance 2 / (kernel area x outputs), not truncated; biases of the head 0."""
    config = _config(name, 10, {"densenet": 48, "wide_resnet": 64}[name], 8)
    params, _ = init_params(build(config), config)
    named = jax.tree_util.tree_leaves_with_path(params["trunk"])
    kernels = [np.asarray(x) for path, x in named if "kernel" in str(path)]
    kernels = [x * np.sqrt(x.shape[0] * x.shape[1] * x.shape[3] / 2) for x in kernels]
    for x in kernels:
        assert x.std() == pytest.approx(1, abs=5 / np.sqrt(2 * x.size))
    assert max(np.abs(x).max() for x in kernels) > 3
    assert not params["head"]["linear"]["bias"].any()


@pytest.mark.parametrize(
    ("name", "golden_name", "width"),
    [
        ("densenet", "densenet_bc", lambda g: int(g["growth_rate"])),
        ("wide_resnet", "wide_resnet", lambda g: 16 * int(g["widen_factor"])),
    ],
)
def test_a_file_of_pytorch_weights(tmp_path, golden, name, golden_name, width):
    g = golden(golden_name)
    arrays = {k[6:]: v.astype("f4") for k, v in g.items() if k.startswith("param/")}
    arrays["bn1.num_batches_tracked"] = np.array(7, "i8")
    storages = Storages()
    state = ordered({f"module.{k}": storages.add(x) for k, x in arrays.items()})
    (tmp_path / "w.pth").write_bytes(storages.zip(state))
    settings = {"model__weights": str(tmp_path / "w.pth"), "head__outputs": len(g["param/fc.bias"])}
    depth = int(g["depth"]) - (int(g["depth"]) - 4) % 6  # the official formula rounds down
    config = _config(name, depth, width(g), g["images"].shape[-1], **settings)
    net = build(config)
    params, stats = load_weights(config, net)
    for key, x in arrays.items():
        if "num_batches" not in key:
            tree = stats if "running" in key else params
            np.testing.assert_array_equal(in_torch_layout(tree, key, FAMILIES[name]), x)
    images = g["images"].astype("f4").transpose(0, 2, 3, 1)
    outputs, _ = jax.jit(partial(net.apply, train=False))(params, stats, images)
    largest = np.abs(g["eval_logits"]).max()
    np.testing.assert_allclose(outputs.logits, g["eval_logits"], atol=1e-4 * largest, rtol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("densenet", 20, 12), r"model\.depth 20 of a densenet: use 6 n \+ 4, such as 16 or 22"),
        (("wide_resnet", 4, 16), r"model\.depth 4 of a wide_resnet: .* such as 10 or 16$"),
        (("wide_resnet", 1, 16), "such as 10 or 16$"),
        (("wide_resnet", 28, 10), r"model\.width 10 of a wide_resnet: .* such as 16$"),
        (("wide_resnet", 28, 40), r"16 x the widen factor, such as 48$"),
        (("densenet", 22, 0), r"model\.width = 0"),
    ],
)
def test_sizes_that_make_no_network(settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        build(_config(*settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_other_mistakes(name):
    for settings, says in (
        ({"model__stem": "imagenet"}, "model.stem 'imagenet' of a .*: it has cifar alone"),
        ({"model__norm": "layer"}, "model.norm 'layer': use batch or group"),
        ({"model__stride": 0}, "model.stride = 0"),
    ):
        with pytest.raises(ValueError, match=says):
            build(_config(name, 22, 16, **settings))


def test_group_norm_of_a_densenet_needs_channels_that_divide():
    _shapes(_config("densenet", 22, 32, model__norm="group"))
    with pytest.raises(ValueError, match=r"model.width 12 .* one layer would have 36; use a mul"):
        build(_config("densenet", 22, 12, model__norm="group"))


def test_images_that_a_densenet_cannot_halve():
    config = _config("densenet", 10, 12, 8, model__stride=8)
    with pytest.raises(ValueError, match="1 x 1 pixels are left at transition_1: use larger"):
        _shapes(config)
