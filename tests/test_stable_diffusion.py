"""Latents from Stable Diffusion's networks: stand-ins for them, and tiny ones where PyTorch is."""

import json
import sys

import numpy as np
import pytest

from ood_jax.diffusion import alphas_cumprod
from ood_jax.stable_diffusion import FILES, Networks, load, sample

WIDTH, LATENT, LENGTH = 3, (2, 4, 4), 5
OUTLIERS = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)


def stand_in(asked):
    """Networks that answer noise of the latents, the step and the mean of what they are told."""

    def tell(outliers):
        if outliers is None:
            return np.zeros((1, LENGTH, WIDTH), np.float32)
        return np.repeat(outliers[:, None], LENGTH, 1)

    def noise(latents, step, told):
        asked.append((step, told.copy()))
        share = np.sqrt(1 - alphas_cumprod()[step])
        told = told.mean((1, 2)).reshape(-1, 1, 1, 1)
        return (share * latents + 0.1 * told).astype(np.float32)

    return Networks(tell, noise, WIDTH, LATENT)


def test_the_networks_are_asked_at_stable_diffusions_steps_with_and_without_the_outlier():
    asked = []
    found = sample(stand_in(asked), OUTLIERS, seed=0, steps=10, block=5)
    assert found.shape == (5, 32) and found.dtype == np.float32
    # PLMS asks once more in its first step, and guidance asks twice each time.
    steps = [901, 801, *range(801, 0, -100)]
    assert [step for step, _ in asked] == [step for step in steps for _ in range(2)]
    for i, (_, told) in enumerate(asked):
        expected = np.repeat(OUTLIERS[:, None], LENGTH, 1) if i % 2 else 0
        np.testing.assert_array_equal(told, np.broadcast_to(expected, told.shape))


def test_guidance_counts_as_stable_diffusion_counts_it():
    """The stand-in is linear in what it is told: guidance s = an outlier s times as far."""
    one = sample(stand_in([]), 7.5 * OUTLIERS, seed=0, steps=10, guidance=1.0)
    np.testing.assert_allclose(
        sample(stand_in([]), OUTLIERS, seed=0, steps=10, guidance=7.5), one, rtol=1e-3, atol=1e-4
    )


def test_a_latent_is_of_its_seed_and_row():
    whole = sample(stand_in([]), OUTLIERS, seed=0, steps=10)
    blocks = sample(stand_in([]), OUTLIERS, seed=0, steps=10, block=2)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(sample(stand_in([]), OUTLIERS, seed=1, steps=10), whole, atol=0.1)


@pytest.mark.parametrize(
    ("outliers", "more", "message"),
    [
        (OUTLIERS[:, :2], {}, "outlier embeddings are 2 wide, the text encoder's tokens 3: use"),
        (np.full((2, 3), np.nan), {}, "not finite"),
        (OUTLIERS, {"block": 0}, "block = 0"),
        (OUTLIERS, {"steps": 300}, "steps = 300"),
    ],
)
def test_what_cannot_be_sampled_is_refused(outliers, more, message):
    with pytest.raises(ValueError, match=message):
        sample(stand_in([]), outliers, seed=0, **more)


def test_missing_weights_say_what_to_place_where(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / FILES[0]).write_text("{}")
    with pytest.raises(
        ValueError, match=r"lacks unet/diffusion_pytorch_model.safetensors, text_"
    ) as e:
        load(str(tmp_path))
    assert FILES[0] not in str(e.value) and "\n" not in str(e.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs torch, diffusers, transformers .* pip install "):
        load(str(tmp_path))


WORDS = ["a", "high", "-", "quality", "image", "of", "the", "thing"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a Stable Diffusion of random parameters, 16 wide."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    (folder / "tokenizer").mkdir()
    letters = sorted(set("".join(WORDS)))
    vocabulary = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    (folder / "tokenizer/vocab.json").write_text(json.dumps(numbers))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    text = transformers.CLIPTextConfig(
        vocab_size=len(numbers),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=len(numbers) - 2,
        eos_token_id=len(numbers) - 1,
    )
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")
    return folder


def test_tiny_networks_give_what_diffusers_own_sampler_gives(tiny):
    import diffusers
    import torch

    networks = load(str(tiny))
    assert (networks.width, networks.latent) == (16, (4, 8, 8))
    outliers = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    found = sample(networks, outliers, seed=0, steps=10, block=2)
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    scheduler.set_timesteps(10)
    drawn = [np.random.default_rng((0, row)).standard_normal((4, 8, 8)) for row in range(3)]
    x = torch.tensor(np.stack(drawn), dtype=torch.float32)
    told, empty = networks.tell(outliers), np.repeat(networks.tell(None), 3, 0)
    for step in scheduler.timesteps:
        null, full = (networks.noise(x.numpy(), int(step), words) for words in (empty, told))
        x = scheduler.step(torch.tensor(null + 7.5 * (full - null)), step, x).prev_sample
    expected = x.numpy().reshape(3, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_outlier_stands_in_place_of_the_last_word_only_while_it_is_told(tiny):
    networks = load(str(tiny))
    outliers = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    empty, told = networks.tell(None), networks.tell(outliers)
    np.testing.assert_array_equal(networks.tell(None), empty)
    first = np.isclose(told[0], told[1], atol=1e-6).all(-1)
    # A text encoder looks back only: what stands before the outlier is the same for both.
    at = int(np.argmin(first))
    assert at > 10 and not first[at:].any()
    # Its direction counts: it takes the length of the token that it replaces.
    np.testing.assert_allclose(networks.tell(7 * outliers), told, atol=1e-5)


def test_widths_that_do_not_fit_together_are_refused(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "other")
    config = tmp_path / "other/unet/config.json"
    import diffusers

    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(config.parent)
    with pytest.raises(ValueError, match="U-Net reads text 24 wide, the text encoder's is 16"):
        load(str(tmp_path / "other"))
