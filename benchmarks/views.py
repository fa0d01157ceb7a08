"""Random views a second, against PIL and, where installed, torchvision and kornia.

    python benchmarks/views.py [--images=512] [--size=32] [--repeat=7]

SimCLR's view of CIFAR-sized images: crop, flip, jitter in random order, grey, normalise. Every
contender is timed in turn, `repeat` times; medians and ratios to PIL (one process) are printed.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")

import jax
import numpy as np
from PIL import Image, ImageEnhance

from ood_jax import sharding
from ood_jax.views import crops, specs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRENGTH = (0.4, 0.4, 0.4, 0.1)


def pil(images: np.ndarray, size: int) -> Callable[[], object]:
    """Image by image with PIL, as torchvision's transforms do it."""
    mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)

    def hue(image: Image.Image, turns: float) -> Image.Image:
        h, s, v = image.convert("HSV").split()
        moved = (np.asarray(h, np.int16) + round(turns * 255)) % 256
        h = Image.fromarray(moved.astype(np.uint8))
        return Image.merge("HSV", (h, s, v)).convert("RGB")

    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

    def view(array: np.ndarray) -> np.ndarray:
        side = array.shape[0]
        area = side * side * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(side, round(math.sqrt(area * ratio)))
        height = min(side, round(math.sqrt(area / ratio)))
        left, top = random.randint(0, side - width), random.randint(0, side - height)
        image = Image.fromarray(array).crop((left, top, left + width, top + height))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < 0.8:
            for i in random.sample(range(4), 4):
                amount = random.uniform(-STRENGTH[i], STRENGTH[i])
                image = hue(image, amount) if i == 3 else enhancers[i](image).enhance(1 + amount)
        if random.random() < 0.2:
            image = image.convert("L").convert("RGB")
        return (np.asarray(image, np.float32) / 255 - mean) / std

    return lambda: np.stack([view(image) for image in images])


def ours(images: np.ndarray, size: int, order: str, mesh: jax.sharding.Mesh) -> Callable:
    """`multi_view` over all devices, one view an image."""
    view = crops.View(
        size, jitter=STRENGTH, jitter_probability=0.8, grey_probability=0.2, jitter_order=order
    )
    index = np.arange(len(images), dtype=np.int32)
    batch = sharding.global_batch(mesh, {"image": images, "index": index})

    @jax.jit
    def views(image: jax.Array, index: jax.Array, key: jax.Array) -> jax.Array:
        return crops.multi_view(image, index, key, (view,), mean=MEAN, std=STD)

    keys = iter(jax.random.split(jax.random.key(0), 1000))
    return lambda: views(batch["image"], batch["index"], next(keys)).block_until_ready()


def torchvision(images: np.ndarray, size: int) -> Callable[[], object]:
    """Image by image with torchvision.transforms.v2 on PIL images."""
    import torch
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*STRENGTH)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda: torch.stack([steps(Image.fromarray(image)) for image in images])


def kornia(images: np.ndarray, size: int) -> Callable[[], object]:
    """The whole batch at once with kornia."""
    import kornia.augmentation as K
    import torch

    steps = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), resample="bicubic", cropping_mode="resample"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*STRENGTH, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return lambda: steps(batch.float() / 255)


def contenders(images: np.ndarray, size: int) -> dict[str, Callable[[], object]]:
    """Everything that can be timed on this machine."""
    mesh = sharding.make_mesh(0)
    out: dict[str, Callable[[], object]] = {"PIL": pil(images, size)}
    for order in specs.ORDERS:
        out[f"ood_jax, one order a {order}"] = ours(images, size, order, mesh)
    for name, make in (("torchvision", torchvision), ("kornia", kornia)):
        try:
            out[name] = make(images, size)
        except ImportError:
            print(f"{name}: not installed")
    return out


def main() -> None:
    """Times all contenders in alternation and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    functions = contenders(images, options.size)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(options.repeat + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{options.images} views of {options.size} px on {jax.device_count()} devices")
    for name, value in median.items():
        rate, spread = options.images / value, max(seconds[name]) / min(seconds[name])
        print(f"{name:32s}{rate:10.0f} views/s {median['PIL'] / value:7.2f} x PIL", end="")
        print(f"   slowest / fastest {spread:.1f}")


if __name__ == "__main__":
    main()
