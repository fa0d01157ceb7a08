"""Latents as images: what diffusers' own code makes of them, the grid, what is left out."""

import sys

import numpy as np
import pytest
from PIL import Image

from ood_jax import stable_diffusion_pictures as pictures
from ood_jax.stable_diffusion_pictures import FILES, GAP, SIDE, decode, picture

RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(5, 4 * 8 * 8)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of an autoencoder of random parameters: 4 x 8 x 8 -> 16 x 16 pixels."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    return folder


def test_images_are_what_diffusers_makes_of_the_latents(tiny):
    import torch
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    vae = AutoencoderKL.from_pretrained(tiny / "vae").eval()
    with torch.no_grad():
        sample = vae.decode(torch.tensor(LATENTS.reshape(5, 4, 8, 8)) / 0.18215).sample
    expected = VaeImageProcessor().postprocess(sample, output_type="pil")
    found = decode(str(tiny), LATENTS)
    assert found.shape == (5, 16, 16, 3) and found.dtype == np.uint8
    assert len(np.unique(found)) > 50
    for one, image in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.astype(int), np.asarray(image).astype(int), atol=1)


def test_latents_of_another_model_are_refused(tiny):
    with pytest.raises(ValueError, match=r"latents 255 wide are no 4 squares, .* from one model"):
        decode(str(tiny), LATENTS[:, :255])
    with pytest.raises(ValueError, match="latent features are not finite"):
        decode(str(tiny), np.full((1, 256), np.nan))


@pytest.fixture
def placed(tmp_path):
    """A folder that has the autoencoder's files, by name."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_the_picture_has_the_first_sixteen_in_rows_of_four(placed, monkeypatch):
    shown = RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    asked = []

    def stand_in(folder, latents):
        asked.append((folder, latents))
        return shown[: len(latents)]

    monkeypatch.setattr(pictures, "decode", stand_in)
    path = placed / "stage" / "pictures.png"
    assert picture(str(placed), np.repeat(LATENTS, 4, 0), path)
    assert asked[0][0] == str(placed) and asked[0][1].shape == (16, 256)
    image = np.asarray(Image.open(path))
    assert image.shape == (4 * 8 + 3 * GAP, 4 * 8 + 3 * GAP, 3)
    step = 8 + GAP
    for number in range(16):
        top, left = number // 4 * step, number % 4 * step
        np.testing.assert_array_equal(image[top : top + 8, left : left + 8], shown[number])
    assert (image[8 : 8 + GAP] == 255).all() and (image[:, 8 : 8 + GAP] == 255).all()
    assert picture(str(placed), LATENTS, path)  # five: a row, and one below it
    assert np.asarray(Image.open(path)).shape == (2 * 8 + GAP, 4 * 8 + 3 * GAP, 3)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_large_images_are_shown_small(placed, monkeypatch):
    large = np.full((16, 512, 512, 3), 70, np.uint8)
    monkeypatch.setattr(pictures, "decode", lambda folder, latents: large)
    assert picture(str(placed), LATENTS, placed / "pictures.png")
    image = np.asarray(Image.open(placed / "pictures.png"))
    assert image.shape == (4 * SIDE + 3 * GAP, 4 * SIDE + 3 * GAP, 3)
    assert (image[:SIDE, :SIDE] == 70).all()


@pytest.mark.parametrize("gone", [(FILES[0],), (FILES[1],), FILES])
def test_without_an_autoencoder_there_is_no_picture(placed, gone):
    for name in gone:
        (placed / name).unlink()
    assert not picture(str(placed), LATENTS, placed / "pictures.png")
    assert not (placed / "pictures.png").exists()


def test_a_missing_package_is_named(placed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs torch, diffusers, transformers .* pip install"):
        picture(str(placed), LATENTS, placed / "pictures.png")


def test_the_report_shows_the_largest_picture_that_is_written(placed, monkeypatch):
    from ood_jax.reporting import outliers_read

    noise = RNG.integers(0, 256, (16, 512, 512, 3), dtype=np.uint8)
    monkeypatch.setattr(pictures, "decode", lambda folder, latents: noise)
    assert picture(str(placed), LATENTS, placed / "pictures.png")
    assert outliers_read.pictures(placed / "pictures.png").shape[-1] == 3
