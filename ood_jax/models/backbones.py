"""Networks with published PyTorch weights, as settings of a config; the files are the user's.

dino_*: facebookresearch/dino (also timm's *.dino). dinov2_*: facebookresearch/dinov2, without
registers. resnet*: torchvision and timm, classifiers of ImageNet-1K.
"""

from typing import Any

from ml_collections import ConfigDict

SIZE = 224  # px that all of these are published for
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


def _vit(width: int, heads: int, patch: int, layer_scale: float = 0.0) -> dict[str, Any]:
    return {
        "model.name": "vit",
        "model.width": width,
        "model.depth": 12,
        "model.heads": heads,
        "model.patch": patch,
        "model.layer_scale": layer_scale,
        "model.drop_path": 0.0,
        "head.name": "none",
    }


def _resnet(depth: int, head: str = "linear") -> dict[str, Any]:
    return {
        "model.name": "resnet",
        "model.width": 64,
        "model.depth": depth,
        "model.stem": "imagenet",
        "model.norm": "batch",
        "head.name": head,
        "head.outputs": 1000,
    }


BACKBONES: dict[str, dict[str, Any]] = {
    "dino_vits16": _vit(384, 6, 16),
    "dino_vits8": _vit(384, 6, 8),
    "dino_vitb16": _vit(768, 12, 16),
    "dino_vitb8": _vit(768, 12, 8),
    "dino_resnet50": _resnet(50, head="none"),
    "dinov2_vits14": _vit(384, 6, 14, layer_scale=1.0),
    "dinov2_vitb14": _vit(768, 12, 14, layer_scale=1.0),
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "resnet101": _resnet(101),
    "resnet152": _resnet(152),
}


def use_backbone(config: ConfigDict, name: str) -> None:
    """Sets the keys of `config` that the backbone `name` needs, but for model.weights.

    Raises:
      ValueError: no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r}: use {', '.join(BACKBONES)}")
    common = {"data.size": SIZE, "data.mean": MEAN, "data.std": STD, "model.image_size": SIZE}
    config.update_from_flattened_dict({**common, **BACKBONES[name]})
