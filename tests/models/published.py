"""State dicts with the names and layouts that published PyTorch networks have, at any width."""

import numpy as np

COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def resnet(depth: int, width: int, classes: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """torchvision's and timm's ResNet: conv1, bn1, layer1.0.conv1, ..., fc."""
    rng = np.random.default_rng(seed)
    bottleneck = depth >= 50
    out: dict[str, np.ndarray] = {}

    def conv(name, outputs, inputs, kernel):
        shape = (outputs, inputs, kernel, kernel)
        out[f"{name}.weight"] = (rng.normal(size=shape) * (2 / inputs / kernel**2) ** 0.5).astype(
            "f4"
        )

    def norm(name, channels):
        out[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels).astype("f4")
        out[f"{name}.bias"] = rng.normal(size=channels).astype("f4") / 10
        out[f"{name}.running_mean"] = rng.normal(size=channels).astype("f4") / 10
        out[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels).astype("f4")
        out[f"{name}.num_batches_tracked"] = np.array(100, "i8")

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    inputs = width
    for stage, count in enumerate(COUNTS[depth]):
        inner = width * 2**stage
        outputs = inner * (4 if bottleneck else 1)
        sizes = [(inner, 1), (inner, 3), (outputs, 1)] if bottleneck else [(inner, 3)] * 2
        for i in range(count):
            name, last = f"layer{stage + 1}.{i}", inputs
            for j, (channels, kernel) in enumerate(sizes, 1):
                conv(f"{name}.conv{j}", channels, last, kernel)
                norm(f"{name}.bn{j}", channels)
                last = channels
            if i == 0 and (stage > 0 or bottleneck):
                conv(f"{name}.downsample.0", outputs, inputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    out["fc.weight"] = rng.normal(size=(classes, inputs)).astype("f4") / inputs**0.5
    out["fc.bias"] = rng.normal(size=classes).astype("f4")
    return out


def vit(
    width: int, depth: int, patch: int, grid: int, *, dinov2: bool = False, classes: int = 0
) -> dict[str, np.ndarray]:
    """DINO's ViT, which timm names alike (classes > 0: with its head), or DINOv2's."""
    rng = np.random.default_rng(1)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (outputs, inputs)
            shapes[f"blocks.{i}.{name}.bias"] = (outputs,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (width,)
        if dinov2:
            shapes[f"blocks.{i}.ls1.gamma"] = shapes[f"blocks.{i}.ls2.gamma"] = (width,)
    if dinov2:
        shapes["mask_token"] = (1, width)
    if classes:
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    return {name: (rng.normal(size=shape) / 5).astype("f4") for name, shape in shapes.items()}
