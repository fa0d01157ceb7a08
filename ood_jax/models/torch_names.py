"""PyTorch's names and layouts of the same networks: load published weights, compare with them.

Weights come as a flat {name: array}; files only as safetensors, which hold no code.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ood_jax.types import PyTree


class Rule(NamedTuple):
    """torch: a regex over whole PyTorch names. ours: the path, with its groups as \\1, \\2.

    to_ours, to_torch: the layouts, inverse to each other, given the other side's array.
    """

    torch: str
    ours: str
    to_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x
    to_torch: Callable[[np.ndarray], np.ndarray] = lambda x: x


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


# facebookresearch/dino: MultiCropWrapper(VisionTransformer, DINOHead); timm's ViT has these names
# without "backbone.".
DINO: list[Rule] = [
    Rule(r"(?:backbone\.)?cls_token", "trunk/cls"),
    Rule(r"(?:backbone\.)?pos_embed", "trunk/position"),
    Rule(
        r"(?:backbone\.)?patch_embed\.proj\.weight",
        "trunk/patch/kernel",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        _patch_to_torch,
    ),
    Rule(r"(?:backbone\.)?patch_embed\.proj\.bias", "trunk/patch/bias"),
    *_norm(r"(?:backbone\.)?blocks\.(\d+)\.norm([12])", r"trunk/block_\1/norm_\2"),
    *_dense(r"(?:backbone\.)?blocks\.(\d+)\.attn\.qkv", r"trunk/block_\1/attention/qkv"),
    *_dense(r"(?:backbone\.)?blocks\.(\d+)\.attn\.proj", r"trunk/block_\1/attention/out"),
    *_dense(r"(?:backbone\.)?blocks\.(\d+)\.mlp\.fc([12])", r"trunk/block_\1/mlp_\2"),
    *_norm(r"(?:backbone\.)?norm", "trunk/norm"),
    # nn.Sequential counts the activations between the linear layers.
    *[rule for i in range(8) for rule in _dense(rf"(?:head\.)?mlp\.{2 * i}", f"head/mlp_{i}")],
    Rule(
        r"(?:head\.)?last_layer\.weight_g",
        "head/last/gain",
        lambda x: x[:, 0],
        lambda x: x[:, None],
    ),
    Rule(r"(?:head\.)?last_layer\.weight_v", "head/last/direction", np.transpose, np.transpose),
]


def from_torch(
    weights: Mapping[str, np.ndarray], rules: list[Rule] = DINO
) -> tuple[PyTree, list[str]]:
    """PyTorch weights -> (our nested parameters, names that no rule knows)."""
    tree: dict = {}
    unknown = []
    for name, value in weights.items():
        found = [(rule, m) for rule in rules if (m := re.fullmatch(rule.torch, name))]
        if not found:
            unknown.append(name)
            continue
        rule, match = found[0]
        *parents, leaf = match.expand(rule.ours).split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(rule.to_ours(np.asarray(value)))
    return tree, unknown


def our_name(torch_name: str, rules: list[Rule] = DINO) -> str:
    """The path of one PyTorch parameter in our tree.

    Raises:
      KeyError: no rule knows it.
    """
    for rule in rules:
        if match := re.fullmatch(rule.torch, torch_name):
            return match.expand(rule.ours)
    raise KeyError(torch_name)


def in_torch_layout(params: PyTree, torch_name: str, rules: list[Rule] = DINO) -> np.ndarray:
    """The parameter that PyTorch calls `torch_name`, out of our tree, in PyTorch's layout.

    Raises:
      KeyError: no rule knows it, or our tree lacks it.
    """
    node = params
    for part in our_name(torch_name, rules).split("/"):
        node = node[part]
    rule = next(rule for rule in rules if re.fullmatch(rule.torch, torch_name))
    return rule.to_torch(np.asarray(node))


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
      ValueError: another kind of file (a .pth is a pickle and would run code when opened).
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(
            f"{path}: only .safetensors files are read (a .pth or .bin is a pickle, which can run"
            " code); convert it where it was made with safetensors.torch.save_file"
        )
    from safetensors.numpy import load_file

    return load_file(path)
