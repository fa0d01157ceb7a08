"""Published weights in our networks: names, layouts, what is left out, and what is refused."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from published import resnet, vit
from torch_writer import Storages, ordered

from ood_jax.config import base
from ood_jax.models import build, init_params
from ood_jax.models.backbones import BACKBONES, use_backbone
from ood_jax.models.torch_names import DINO, RESNET, in_torch_layout
from ood_jax.models.weights import load_weights


def _save(tmp_path, arrays, wrap=lambda state: state) -> str:
    storages = Storages()
    state = ordered({name: storages.add(x) for name, x in arrays.items()})
    (tmp_path / "w.pth").write_bytes(storages.zip(wrap(state)))
    return str(tmp_path / "w.pth")


def _config(backbone, path="", **settings):
    """A small one of the kind `backbone`."""
    c = base("frozen")
    use_backbone(c, backbone)
    c.model.weights = path
    c.update_from_flattened_dict({key.replace("__", "."): v for key, v in settings.items()})
    return c


def _load(tmp_path, arrays, backbone, *, head=True, wrap=lambda state: state, **settings):
    config = _config(backbone, _save(tmp_path, arrays, wrap), **settings)
    net = build(config)
    params, stats = load_weights(config, net, head=head)
    return config, net, params, stats


def _shapes(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


RESNETS = [("resnet18", 18, 1000), ("resnet34", 34, 1000), ("resnet50", 50, 1000)]
SMALL = {"model__width": 8, "model__image_size": 32}


@pytest.mark.parametrize(("backbone", "depth", "classes"), RESNETS)
def test_a_whole_resnet(tmp_path, backbone, depth, classes):
    arrays = resnet(depth, 8, classes)
    config, net, params, stats = _load(tmp_path, arrays, backbone, **SMALL)
    expected = jax.eval_shape(lambda: init_params(net, config))
    assert _shapes((params, stats)) == _shapes(expected)
    for name, x in arrays.items():
        if "num_batches" not in name:
            tree = stats if "running" in name else params
            np.testing.assert_array_equal(in_torch_layout(tree, name, RESNET), x)
    images = np.zeros((1, 32, 32, 3), np.float32)
    outputs, _ = jax.eval_shape(partial(net.apply, train=False), params, stats, images)
    assert outputs.logits.shape == (1, classes)


def test_a_resnet_without_its_classifier(tmp_path):
    arrays = resnet(18, 8)
    _, _, params, _ = _load(tmp_path, arrays, "resnet18", head__name="none", **SMALL)
    assert set(params) == {"trunk"}
    headless = {name: x for name, x in arrays.items() if not name.startswith("fc")}
    with pytest.raises(ValueError, match=r"lacks: head/linear/bias.*head\.name = none"):
        _load(tmp_path, headless, "resnet18", **SMALL)
    _, _, params, _ = _load(tmp_path, headless, "resnet18", head=False, **SMALL)
    assert set(params) == {"trunk"}


VIT = {"model__width": 12, "model__depth": 2, "model__heads": 2}


@pytest.mark.parametrize(
    ("backbone", "patch", "settings"),
    [("dino_vits16", 16, {}), ("dino_vits8", 8, {}), ("dinov2_vits14", 14, {"dinov2": True})],
)
def test_a_whole_vit(tmp_path, backbone, patch, settings):
    arrays = vit(12, 2, patch, 4, **settings)
    config, net, params, stats = _load(
        tmp_path, arrays, backbone, **VIT, model__image_size=4 * patch
    )
    assert _shapes((params, stats)) == _shapes(jax.eval_shape(lambda: init_params(net, config)))
    assert stats == {}
    for name, x in arrays.items():
        if name != "mask_token":
            np.testing.assert_array_equal(in_torch_layout(params, name, DINO), x)


def test_timms_head(tmp_path):
    arrays = vit(12, 2, 16, 2, classes=5)
    settings = {**VIT, "model__image_size": 32, "head__name": "linear", "head__outputs": 5}
    _, _, params, _ = _load(tmp_path, arrays, "dino_vits16", **settings)
    np.testing.assert_array_equal(params["head"]["linear"]["kernel"], arrays["head.weight"].T)


def test_a_whole_dino_checkpoint_is_its_teachers_trunk(tmp_path):
    student, teacher = vit(12, 2, 16, 2), vit(12, 2, 16, 2)
    teacher = {f"backbone.{name}": 2 * x for name, x in teacher.items()}
    teacher["head.mlp.0.weight"] = np.ones((7, 12), "f4")
    teacher["head.last_layer.weight_g"] = np.ones((9, 1), "f4")

    def wrap(state):
        storages = ordered({f"module.{name}": x for name, x in state.items.items()})
        return {"student": ordered({}), "teacher": storages, "epoch": 3}

    settings = {**VIT, "model__image_size": 32}
    _, _, params, _ = _load(tmp_path, teacher, "dino_vits16", wrap=wrap, **settings)
    found = in_torch_layout(params, "blocks.1.attn.proj.weight")
    np.testing.assert_array_equal(found, 2 * student["blocks.1.attn.proj.weight"])
    assert set(params) == {"trunk"}


def test_half_precision_becomes_float32(tmp_path):
    arrays = {name: x.astype("f2") for name, x in vit(12, 2, 16, 2).items()}
    _, _, params, _ = _load(tmp_path, arrays, "dino_vits16", **VIT, model__image_size=32)
    found = params["trunk"]["cls"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, arrays["cls_token"].astype("f4"))


def test_position_tables_are_resized_as_the_official_code_does(tmp_path, golden):
    """The file's table, made for img_size, in a network for each other size of the golden set."""
    g = golden("vit")
    arrays = {k.removeprefix("param/"): v for k, v in g.items() if k.startswith("param/")}
    sizes = [int(k.removeprefix("images_")) for k in g if k.startswith("images_")]
    for size in sizes:
        settings = {f"model__{k}": int(g[v]) for k, v in (("width", "dim"), ("depth", "depth"))}
        settings |= {"model__heads": int(g["heads"]), "model__patch": int(g["patch"])}
        _, net, params, stats = _load(
            tmp_path, arrays, "dino_vits16", **settings, model__image_size=size
        )
        np.testing.assert_allclose(params["trunk"]["position"], g[f"pos_{size}"], atol=2e-6, rtol=0)
        images = g[f"images_{size}"].transpose(0, 2, 3, 1)
        outputs, _ = jax.jit(partial(net.apply, train=False))(params, stats, images)
        np.testing.assert_allclose(outputs.features, g[f"cls_{size}"], atol=2e-5, rtol=0)


def test_mismatches_are_told_in_one_line(tmp_path):
    arrays = resnet(18, 8)
    del arrays["bn1.running_var"], arrays["layer1.0.bn1.bias"]
    arrays["fc.bias"] = arrays["fc.bias"][:7]
    arrays |= {f"extra.{i}": np.ones(1, "f4") for i in range(9)}
    with pytest.raises(ValueError) as caught:
        _load(tmp_path, arrays, "resnet18", **SMALL)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "names that this network has no place for: extra.0, extra.1, extra.2 and 6 more;",
        "it lacks: trunk/stage_1_block_0/norm_1/bias, stats/trunk/norm_1/var;",
        "its shapes are others: head/linear/bias [7] instead of [1000].",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("arrays", "backbone", "says"),
    [
        (lambda: vit(12, 2, 16, 2), "resnet18", "no place for: cls_token"),
        (lambda: resnet(50, 8), "resnet18", r"stage_1_block_0/conv_3/kernel"),
        (lambda: vit(12, 2, 14, 2, dinov2=True), "dino_vits16", r"layer_scale_1/scale"),
        (
            lambda: {"conv1.weight": np.ones((3, 3), "f4")},
            "resnet18",
            "conv1.weight.* no such weight",
        ),
        (
            lambda: {
                "conv1.weight": np.ones((1,) * 4, "f4"),
                "module.conv1.weight": np.ones((1,) * 4),
            },
            "resnet18",
            "there twice",
        ),
        (lambda: vit(12, 2, 16, 2) | {"pos_embed": np.ones((4, 12))}, "dino_vits16", "position"),
        (lambda: vit(12, 2, 16, 2) | {"pos_embed": np.ones((1, 4, 12))}, "dino_vits16", "position"),
    ],
)
def test_another_network(tmp_path, arrays, backbone, says):
    settings = SMALL if backbone == "resnet18" else {**VIT, "model__image_size": 32}
    with pytest.raises(ValueError, match=says) as caught:
        _load(tmp_path, arrays(), backbone, **settings)
    assert re.search(r"w\.pth", str(caught.value))


def test_names_of_other_trunks_are_not_known(tmp_path):
    config = _config("resnet18", "w.pth")
    config.model.name = "my_pkg.my_trunk"
    with pytest.raises(ValueError, match="known of vit, resnet, densenet, wide_resnet, not of"):
        load_weights(config, None)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_is_a_network(backbone):
    config = _config(backbone)
    net = build(config)
    shapes = jax.eval_shape(lambda: init_params(net, config))
    count = sum(x.size for x in jax.tree.leaves(shapes[0]))
    # Published sizes (millions of parameters; DINOv2's without its mask token, at 224 px).
    known = {"dino_vits16": 21.7, "dino_vitb16": 85.8, "resnet18": 11.69, "resnet50": 25.557}
    known |= {"resnet34": 21.798, "resnet101": 44.549, "resnet152": 60.193, "dino_resnet50": 23.508}
    known |= {"dino_vits8": 21.7, "dino_vitb8": 85.8, "dinov2_vits14": 21.6, "dinov2_vitb14": 85.7}
    assert count / 1e6 == pytest.approx(known[backbone], rel=3e-3)


def test_an_unknown_backbone():
    with pytest.raises(ValueError, match="'resnet20': use dino_vits16, "):
        use_backbone(base("frozen"), "resnet20")
