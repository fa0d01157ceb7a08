"""Far outliers of Stable Diffusion as images, where its autoencoder lies beside the other weights.

Nothing trains on them; a look at them tells what the latents are of.
"""

import math
from pathlib import Path

import numpy as np
from etils import epath

from ood_jax.atomic import replaced
from ood_jax.scorers.cosine import check_features
from ood_jax.stable_diffusion import LOCAL, device_of, lacking
from ood_jax.types import Array

FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")  # beside the others
SHOWN, COLUMNS, SIDE, GAP = 16, 4, 128, 4  # of a picture: images; px of one and between two


def picture(folder: str, latents: Array, path: epath.PathLike) -> bool:
    """Writes the first SHOWN latents, decoded, as a PNG: in rows of COLUMNS, each at most SIDE px.

    latents: as `sample` returns them.

    Returns:
      False, and nothing is written, where `folder` has no FILES.

    Raises:
      ValueError: as `decode`; the place cannot be written.
    """
    if not all((Path(folder) / name).is_file() for name in FILES):
        return False
    from PIL import Image

    images = []
    for one in decode(folder, np.asarray(latents)[:SHOWN]):
        image = Image.fromarray(one)
        image.thumbnail((SIDE, SIDE))
        images.append(np.asarray(image))
    height, width = images[0].shape[:2]
    rows, columns = -(-len(images) // COLUMNS), min(COLUMNS, len(images))
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    grid = np.full(shape, 255, np.uint8)
    for number, one in enumerate(images):
        row, column = divmod(number, COLUMNS)
        top, left = row * (height + GAP), column * (width + GAP)
        grid[top : top + height, left : left + width] = one
    with replaced(path) as fresh, open(fresh, "wb") as file:
        Image.fromarray(grid).save(file, "PNG")
    return True


def decode(folder: str, latents: Array) -> np.ndarray:
    """What the autoencoder in `folder` makes of latents of Stable Diffusion: uint8 [M, H, W, 3].

    latents: [M, channels x side x side], divided by the autoencoder's scaling factor (.18215 in
    Stable Diffusion 1) before they are decoded.

    Raises:
      ValueError: packages that are missing, latents that are not finite or no square of its
        channels.
    """
    rows = check_features(latents, "latent")
    try:
        import torch
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise lacking(error) from None
    device = device_of(torch)
    vae = AutoencoderKL.from_pretrained(f"{folder}/vae", low_cpu_mem_usage=False, **LOCAL)
    vae = vae.to(device).float().eval()
    channels = vae.config.latent_channels
    side = math.isqrt(rows.shape[1] // channels)
    if channels * side**2 != rows.shape[1]:
        raise ValueError(
            f"latents {rows.shape[1]} wide are no {channels} squares, as the autoencoder in"
            f" {folder} has them: take all networks from one model"
        )
    images = []
    for row in rows:  # 512 x 512 pixels of one take GB
        with torch.no_grad():
            latent = torch.tensor(row.reshape(1, channels, side, side), device=device)
            image = vae.decode(latent / vae.config.scaling_factor).sample[0]
            image = (255 * (image / 2 + 0.5).clamp(0, 1)).round().permute(1, 2, 0)
            images.append(image.to(torch.uint8).cpu().numpy())
    return np.stack(images)
