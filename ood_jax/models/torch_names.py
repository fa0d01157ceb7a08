"""PyTorch's names and layouts of the same networks: load published weights, compare with them.

Weights come as a flat {name: array}. Wrappers' prefixes ("module." of DataParallel, "backbone." of
DINO's MultiCropWrapper) say nothing and are left out.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ood_jax.types import PyTree


class Rule(NamedTuple):
    """torch: a regex over whole PyTorch names. ours: the path, with its groups as \\1, \\2.

    to_ours, to_torch: the layouts, inverse to each other, given the other side's array.
    tree: "params", or "stats" of BatchNorm; "" = nothing of ours, known and left out.
    """

    torch: str
    ours: str
    to_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x
    to_torch: Callable[[np.ndarray], np.ndarray] = lambda x: x
    tree: str = "params"


class Imported(NamedTuple):
    """PyTorch weights in our trees: names that no rule knows are in `unknown`."""

    params: PyTree
    stats: PyTree
    unknown: list[str]


def _patch_to_torch(x: np.ndarray) -> np.ndarray:
    side = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _dense(torch: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{torch}\.weight", f"{ours}/kernel", np.transpose, np.transpose),
        Rule(rf"{torch}\.bias", f"{ours}/bias"),
    ]


def _norm(torch: str, ours: str) -> list[Rule]:
    return [Rule(rf"{torch}\.weight", f"{ours}/scale"), Rule(rf"{torch}\.bias", f"{ours}/bias")]


def _conv(torch: str, ours: str) -> Rule:
    return Rule(
        rf"{torch}\.weight",
        f"{ours}/kernel",
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    )


def _batch_norm(torch: str, ours: str) -> list[Rule]:
    return [
        *_norm(torch, ours),
        Rule(rf"{torch}\.running_mean", f"{ours}/mean", tree="stats"),
        Rule(rf"{torch}\.running_var", f"{ours}/var", tree="stats"),
    ]


# facebookresearch/dino: MultiCropWrapper(VisionTransformer, DINOHead); timm's ViT has the same
# names and `head`; facebookresearch/dinov2's has `ls1` and `ls2`, and a token only training needs.
DINO: list[Rule] = [
    Rule(r"cls_token", "trunk/cls"),
    Rule(r"pos_embed", "trunk/position"),
    Rule(
        r"patch_embed\.proj\.weight",
        "trunk/patch/kernel",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        _patch_to_torch,
    ),
    Rule(r"patch_embed\.proj\.bias", "trunk/patch/bias"),
    *_norm(r"blocks\.(\d+)\.norm([12])", r"trunk/block_\1/norm_\2"),
    *_dense(r"blocks\.(\d+)\.attn\.qkv", r"trunk/block_\1/attention/qkv"),
    *_dense(r"blocks\.(\d+)\.attn\.proj", r"trunk/block_\1/attention/out"),
    *_dense(r"blocks\.(\d+)\.mlp\.fc([12])", r"trunk/block_\1/mlp_\2"),
    Rule(r"blocks\.(\d+)\.ls([12])\.gamma", r"trunk/block_\1/layer_scale_\2/scale"),
    *_norm(r"norm", "trunk/norm"),
    *_dense(r"head", "head/linear"),
    # nn.Sequential counts the activations between the linear layers.
    *[rule for i in range(8) for rule in _dense(rf"(?:head\.)?mlp\.{2 * i}", f"head/mlp_{i}")],
    Rule(
        r"(?:head\.)?last_layer\.weight_g",
        "head/last/gain",
        lambda x: x[:, 0],
        lambda x: x[:, None],
    ),
    Rule(r"(?:head\.)?last_layer\.weight_v", "head/last/direction", np.transpose, np.transpose),
    Rule(r"mask_token", "", tree=""),
]

# Counted by PyTorch, and read only where its momentum is None.
COUNTED = Rule(r".*\.num_batches_tracked", "", tree="")

# torchvision's and timm's ResNets (downsample, fc) and OpenOOD's for CIFAR (shortcut, fc).
RESNET: list[Rule] = [
    _conv("conv1", "trunk/conv_1"),
    *_batch_norm("bn1", "trunk/norm_1"),
    _conv(r"layer(\d)\.(\d+)\.conv([123])", r"trunk/stage_\1_block_\2/conv_\3"),
    *_batch_norm(r"layer(\d)\.(\d+)\.bn([123])", r"trunk/stage_\1_block_\2/norm_\3"),
    _conv(
        r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.0", r"trunk/stage_\1_block_\2/shortcut_conv"
    ),
    *_batch_norm(
        r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.1", r"trunk/stage_\1_block_\2/shortcut_norm"
    ),
    *_dense("fc", "head/linear"),
    COUNTED,
]


def _pre_activation(block: str) -> list[Rule]:
    """What OpenOOD's DenseNet3 and WideResNet have in common; block: our path of one block."""
    return [
        _conv("conv1", "trunk/conv_1"),
        _conv(r"block(\d)\.layer\.(\d+)\.conv([12])", rf"{block}/conv_\3"),
        *_batch_norm(r"block(\d)\.layer\.(\d+)\.bn([12])", rf"{block}/norm_\3"),
        *_batch_norm("bn1", "trunk/norm"),
        *_dense("fc", "head/linear"),
        COUNTED,
    ]


DENSENET: list[Rule] = [
    *_pre_activation(r"trunk/block_\1_layer_\2"),
    _conv(r"trans(\d)\.conv1", r"trunk/transition_\1/conv"),
    *_batch_norm(r"trans(\d)\.bn1", r"trunk/transition_\1/norm"),
]

WIDE_RESNET: list[Rule] = [
    *_pre_activation(r"trunk/stage_\1_block_\2"),
    _conv(r"block(\d)\.layer\.(\d+)\.convShortcut", r"trunk/stage_\1_block_\2/shortcut_conv"),
]

FAMILIES = {  # config.model.name -> rules
    "vit": DINO,
    "resnet": RESNET,
    "densenet": DENSENET,
    "wide_resnet": WIDE_RESNET,
}


def from_torch(weights: Mapping[str, np.ndarray], rules: list[Rule] = DINO) -> Imported:
    """PyTorch weights -> our nested parameters and BatchNorm statistics, float32 or as they are.

    Raises:
      ValueError: two names stand for one array, or a layout that is not the rule's.
    """
    trees: dict[str, dict] = {"params": {}, "stats": {}}
    unknown = []
    for name, value in weights.items():
        found = _find(name, rules)
        if found is None:
            unknown.append(name)
            continue
        rule, path = found
        if not rule.tree:
            continue
        *parents, leaf = path.split("/")
        node = trees[rule.tree]
        for parent in parents:
            node = node.setdefault(parent, {})
        if leaf in node:
            raise ValueError(f"{name} is there twice, with and without a wrapper's prefix")
        try:
            node[leaf] = np.ascontiguousarray(rule.to_ours(np.asarray(value)))
        except (ValueError, IndexError):
            raise ValueError(f"{name} {list(np.shape(value))} is no such weight") from None
    return Imported(trees["params"], trees["stats"], unknown)


def our_name(torch_name: str, rules: list[Rule] = DINO) -> str:
    """The path of one PyTorch parameter in our tree.

    Raises:
      KeyError: no rule knows it.
    """
    found = _find(torch_name, rules)
    if found is None:
        raise KeyError(torch_name)
    return found[1]


def in_torch_layout(params: PyTree, torch_name: str, rules: list[Rule] = DINO) -> np.ndarray:
    """The array that PyTorch calls `torch_name`, out of our tree, in PyTorch's layout.

    Raises:
      KeyError: no rule knows it, or our tree lacks it.
    """
    found = _find(torch_name, rules)
    if found is None:
        raise KeyError(torch_name)
    rule, path = found
    node = params
    for part in path.split("/"):
        node = node[part]
    return rule.to_torch(np.asarray(node))


def _find(name: str, rules: list[Rule]) -> tuple[Rule, str] | None:
    name = re.sub(r"^(?:module\.|backbone\.)+", "", name)
    for rule in rules:
        if match := re.fullmatch(rule.torch, name):
            return rule, match.expand(rule.ours)
    return None
