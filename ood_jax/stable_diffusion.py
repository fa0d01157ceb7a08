"""Far outliers from Stable Diffusion 1, its weights a local folder: the other backend of OAML.

The samplers are those of diffusion_sampling.py; only the two networks are PyTorch's. Needs the
packages torch, diffusers and transformers.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.diffusion import Predict, alphas_cumprod
from ood_jax.diffusion_sampling import check_sampler, guided, plms, sampler_steps
from ood_jax.scorers.cosine import check_features
from ood_jax.types import Array
from ood_jax.untrusted import MISSHAPEN, read_json

PACKAGES = ("torch", "diffusers", "transformers")
FILES = (  # of a folder in the layout of diffusers, all that is read of it
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
)
# OAML's prompt; the last word's embedding gives way to the outlier.
PROMPT = "A high-quality image of the thing"

LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}


class Networks(NamedTuple):
    """Stable Diffusion's networks as functions of NumPy arrays.

    tell: outlier embeddings float32 [B, width] -> what the text encoder makes of PROMPT with them
        in it, each with the norm of the token that it replaces, as in OAML's code: float32
        [B, L, width]; None -> of the empty prompt, float32 [1, L, width].
    noise: (latents float32 [B, *latent], step of the schedule, told float32 [B, L, width]) -> the
        noise in them, float32 [B, *latent].
    width: of a token's embedding. latent: (channels, height, width) of the latents.
    """

    tell: Callable[[np.ndarray | None], np.ndarray]
    noise: Callable[[np.ndarray, int, np.ndarray], np.ndarray]
    width: int
    latent: tuple[int, ...]


def sample(
    networks: Networks,
    conditions: Array,
    *,
    seed: int,
    steps: int = 50,
    guidance: float = 7.5,
    stop: int = 0,
    block: int = 4,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """One latent for each outlier embedding, OAML section 4.1: float32 [M, channels x H x W].

    PLMS, as OAML's released code. That draws an outlier and a class at random and gives the
    outlier the place of the first token of the class's name, three latents each; here every
    outlier has one latent, which depends on (seed, its row) alone.

    Args:
      networks: of `load`. conditions: [M, width], not standardised, as tokens are not. guidance,
        stop: see diffusion_sampling. block: rows at once. done: told how many more are.

    Raises:
      ValueError: another width, values that are not finite, numbers that make no sense.
    """
    check_numbers(guidance, block)
    conditions = check_features(conditions, "outlier")
    check_tokens(conditions.shape[1], networks.width)
    alphas = alphas_cumprod()
    chosen = sampler_steps(alphas, steps, stop)
    predict = _predict(networks, alphas)
    parts = []
    for start in range(0, len(conditions), block):
        told = networks.tell(conditions[start : start + block])
        rows = range(start, start + len(told))
        drawn = [
            np.random.default_rng((seed, row)).standard_normal(networks.latent) for row in rows
        ]
        noise = guided(predict, told, guidance)
        with jax.disable_jit():  # the networks are no part of a program that JAX could compile
            first = jnp.asarray(np.stack(drawn).reshape(len(rows), -1), jnp.float32)
            parts.append(np.asarray(plms(noise, first, chosen)))
        done(len(told))
    return np.concatenate(parts)


def check_numbers(guidance: float, block: int) -> None:
    """Refuses what `sample` cannot work with.

    Raises:
      ValueError: naming the number, and what it may be.
    """
    check_sampler("plms", guidance, 0.0)
    if block < 1:
        raise ValueError(f"block = {block} rows at once: use 1 or more")


def check_tokens(width: int, tokens: int) -> None:
    """Refuses outliers [M, width] that cannot take the place of tokens.

    Raises:
      ValueError: naming both widths.
    """
    if width != tokens:
        raise ValueError(
            f"the outlier embeddings are {width} wide, the text encoder's tokens {tokens}: use a"
            f" teacher with {tokens} features, as ViT-B has"
        )


def _predict(networks: Networks, alphas: np.ndarray) -> Predict:
    """The networks as samplers want them; the empty prompt is the null condition."""
    empty = networks.tell(None)

    def predict(noisy: Array, signal: Array, told: Array, given: Array) -> Array:
        step = int(np.abs(np.sqrt(alphas) - float(signal[0])).argmin())
        told = np.where(np.asarray(given)[:, None, None], told, empty).astype(np.float32)
        latents = np.asarray(noisy).reshape(-1, *networks.latent)
        return jnp.asarray(networks.noise(latents, step, told).reshape(noisy.shape))

    return predict


def load(folder: str) -> Networks:
    """The Networks in `folder`, on a GPU where PyTorch sees one, float32.

    Only safetensors are read, nothing is unpickled and nothing is looked for elsewhere.

    Raises:
      ValueError: files or packages that are missing, widths that do not fit together.
    """
    check_files(folder)
    try:
        import torch
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise lacking(error) from None
    device = device_of(torch)
    unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False, **LOCAL)
    unet = unet.to(device).float().eval()
    text = CLIPTextModel.from_pretrained(f"{folder}/text_encoder", **LOCAL)
    text = text.to(device).float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer", local_files_only=True)
    width = text.config.hidden_size
    if unet.config.cross_attention_dim != width:
        raise ValueError(
            f"{folder}: the U-Net reads text {unet.config.cross_attention_dim} wide, the text"
            f" encoder's is {width}: take both from one model"
        )

    def noise(latents: np.ndarray, step: int, told: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            inputs = (torch.tensor(x, device=device) for x in (latents, step, told))
            return unet(*inputs).sample.float().cpu().numpy()

    return Networks(_tell(torch, text, tokenizer, device), noise, width, sizes_of(folder).latent)


def device_of(torch: Any) -> str:
    """Where PyTorch computes: a GPU where it sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def lacking(error: ImportError) -> ValueError:
    """What a missing package is answered with."""
    return ValueError(
        f"Stable Diffusion needs {', '.join(PACKAGES)} ({error}): pip install"
        ' "ood_jax[stable-diffusion]", or use the backend on embeddings'
    )


class Sizes(NamedTuple):
    """width: of a token's embedding. latent: (channels, height, width) of the latents."""

    width: int
    latent: tuple[int, int, int]


def sizes_of(folder: str) -> Sizes:
    """What the model in `folder` reads and makes, by its configs; no network is loaded.

    Raises:
      ValueError: files or packages that are missing, configs that are none.
    """
    check_files(folder)
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        raise lacking(ImportError(f"no module {absent[0]}"))
    try:
        unet = read_json(Path(folder) / "unet/config.json")
        text = read_json(Path(folder) / "text_encoder/config.json")
        side = int(unet["sample_size"])
        return Sizes(int(text["hidden_size"]), (int(unet["in_channels"]), side, side))
    except MISSHAPEN as error:
        raise ValueError(f"{folder}: a config.json there is none of diffusers' ({error})") from None


def check_files(folder: str) -> None:
    """Refuses a folder without the weights.

    Raises:
      ValueError: what is missing, and what to place where.
    """
    missing = [name for name in FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(
            f"method.weights = {folder!r} lacks {', '.join(missing)}: name a folder, and put the"
            " weights of Stable Diffusion 1.4 there, in the layout of diffusers, as safetensors"
        )


def _tell(
    torch: Any, text: Any, tokenizer: Any, device: str
) -> Callable[[np.ndarray | None], np.ndarray]:
    def ids(prompt: str) -> Any:
        length = text.config.max_position_embeddings
        tokens = tokenizer([prompt], padding="max_length", max_length=length, truncation=True)
        return torch.tensor(tokens["input_ids"], device=device)

    prompt, empty = ids(PROMPT), ids("")
    # Padding is the same token as the end of the text, whose first one is meant.
    last = int((prompt[0] == tokenizer.eos_token_id).nonzero()[0]) - 1

    def tell(outliers: np.ndarray | None) -> np.ndarray:
        with torch.no_grad():
            if outliers is None:
                return text(input_ids=empty).last_hidden_state.float().cpu().numpy()

            def replaced(module: Any, inputs: Any, tokens: Any) -> Any:
                tokens = tokens.clone()
                given = torch.nn.functional.normalize(torch.tensor(outliers, device=device))
                tokens[:, last] = given * tokens[:, last].norm(dim=-1, keepdim=True)
                return tokens

            hook = text.get_input_embeddings().register_forward_hook(replaced)
            try:
                told = text(input_ids=prompt.expand(len(outliers), -1))
            finally:
                hook.remove()
            return told.last_hidden_state.float().cpu().numpy()

    return tell
