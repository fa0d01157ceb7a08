"""Far outliers: OAML, step 2 (METHODS: section 4).

backend embeddings: a diffusion of a teacher's embeddings (data.embeddings), conditioned on the same
embedding with noise, learns what the train set looks like (diffusion.py). When that is done, each
near outlier (data.near) is the condition that one vector is drawn for, and guidance takes it away
from the data (diffusion_sampling.py).
backend stable_diffusion: nothing is trained; each near outlier takes the place of a word in the
prompt of Stable Diffusion 1, and the latents are the far outliers (stable_diffusion.py).
Either way the stage leaves WORKDIR/outliers.npz.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax import stable_diffusion
from ood_jax.diffusion import (
    Standard,
    alphas_cumprod,
    denoising_loss,
    restored,
    standard_of,
    standardised,
)
from ood_jax.diffusion_sampling import check_sampler, sample, sampler_steps
from ood_jax.methods._outliers import counted, no_views
from ood_jax.models.diffusion import Denoiser, denoiser
from ood_jax.stable_diffusion_pictures import picture
from ood_jax.types import Array, Aux, Batch, Maker, Method, Net, PyTree, TrainState, Update, Vectors

BACKENDS = ("embeddings", "stable_diffusion")

DEFAULTS: dict[str, Any] = dict(
    backend="embeddings",  # embeddings | stable_diffusion
    outliers=1000,  # of so many near ones, drawn at random, a far one is made; 0 = of all
    guidance=7.5,  # 1 = the condition alone; above it goes on past the condition
    sample_steps=50,  # of the sampler
    stop=0,  # step of the schedule that sampling ends at: 0 = clean vectors (the released code),
    # T = with the noise of T steps (the paper's text)
    sampler="plms",  # embeddings: plms | ddim
    eta=0.0,  # ddim: share of DDPM's randomness
    schedule="scaled_linear",  # embeddings: scaled_linear (Stable Diffusion's) | cosine
    times=1000,  # embeddings: steps of the schedule
    width=256,  # embeddings: of the network's hidden layers
    depth=3,  # embeddings: its residual blocks
    keep_constant=False,  # embeddings: True = constant dimensions stay so; False = refused
    blur=0.5,  # embeddings: deviation of the noise on the condition, in those of the train set
    dropout=0.1,  # embeddings: share of vectors that are learnt without condition
    weights="",  # stable_diffusion: folder of its weights (ood_jax/stable_diffusion.py)
    pooled=False,  # stable_diffusion: True = latents averaged to their width (the released code)
    block=4,  # stable_diffusion: latents at once
)
PRESETS: dict[str, dict[str, Any]] = {"official": {"method.pooled": True, "method.outliers": 300}}


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it; `net` is not used.

    Raises:
      ValueError: settings that make no sense together, before any compute; weights of Stable
        Diffusion that are not there.
    """
    _check(config)
    if config.method.backend == "stable_diffusion":
        return _stable_diffusion(config)
    m = config.method
    alphas = alphas_cumprod(m.schedule, m.times)
    # Of whatever widths its arrays have: apply alone does not read them.
    network = partial(_network, config)

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return network(batch["embedding"].shape[1]).init(key), {}

    def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        rows = batch["embedding"]
        errors = denoising_loss(
            partial(network(rows.shape[1]).apply, params),
            rows,
            rows,
            batch["index"],
            key,
            alphas=alphas,
            blur=m.blur,
            dropout=m.dropout,
        )
        return errors.mean(), Aux(state.stats, state.memory, {})

    def make(
        params: PyTree, vectors: Vectors, labels: Array | None, mesh: Mesh
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        standard = _standard(config, vectors)
        rows = _chosen(len(vectors.near), config)
        width = vectors.embeddings.shape[1]
        with counted(len(rows), "generate") as bar:
            drawn = sample(
                network(width).apply,
                params,
                standardised(vectors.near[rows], standard),
                size=width,
                steps=sampler_steps(alphas, m.sample_steps, m.stop),
                mesh=mesh,
                key=jax.random.key(config.seed),
                sampler=m.sampler,
                guidance=m.guidance,
                eta=m.eta,
                done=bar.update,
            )
        return np.asarray(restored(drawn, standard)), {"source": rows}

    return Method(
        updates=(Update(loss),),
        views=no_views,
        init=init,
        images=False,
        reads=("embeddings", "near"),
        prepared=partial(_standardised, config),
        maker=Maker("far", lambda vectors: vectors.embeddings.shape[1], make),
    )


def _network(config: ConfigDict, width: int) -> Denoiser:
    return denoiser(width, width, width=config.method.width, depth=config.method.depth)


def _standard(config: ConfigDict, vectors: Vectors) -> Standard:
    rows = vectors.embeddings[vectors.known]
    return standard_of(rows, keep_constant=config.method.keep_constant)


def _standardised(config: ConfigDict, vectors: Vectors) -> Vectors:
    standard = _standard(config, vectors)
    return vectors._replace(embeddings=standardised(vectors.embeddings, standard), near=None)


def _chosen(count: int, config: ConfigDict) -> np.ndarray:
    """The near outliers that far ones are made of, int32 ascending."""
    wanted = min(config.method.outliers or count, count)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((config.seed, count))))
    return np.sort(rng.permutation(count)[:wanted]).astype(np.int32)


def _stable_diffusion(config: ConfigDict) -> Method:
    m = config.method
    tokens, latent = stable_diffusion.sizes_of(m.weights)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        stable_diffusion.check_tokens(batch["near"].shape[1], tokens)
        return {}, {}

    def width(vectors: Vectors) -> int:
        return latent[-1] if m.pooled else int(np.prod(latent))

    def make(
        params: PyTree, vectors: Vectors, labels: Array | None, mesh: Mesh
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows = _chosen(len(vectors.near), config)
        with counted(len(rows), "generate") as bar:
            drawn = stable_diffusion.sample(
                stable_diffusion.load(m.weights),
                vectors.near[rows],
                seed=config.seed,
                steps=m.sample_steps,
                guidance=m.guidance,
                stop=m.stop,
                block=m.block,
                done=bar.update,
            )
        if m.pooled:
            drawn = drawn.reshape(len(drawn), *latent).mean((1, 2))
        return drawn, {"source": rows}

    return Method(
        updates=(),
        views=no_views,
        init=init,
        images=False,
        reads=("embeddings", "near"),
        maker=Maker("far", width, make, picture=None if m.pooled else partial(picture, m.weights)),
    )


def _check(config: ConfigDict) -> None:
    m = config.method
    if m.backend not in BACKENDS:
        raise ValueError(f"method.backend {m.backend!r}: use {' or '.join(BACKENDS)}")
    if m.outliers < 0 or m.outliers == 1:  # one alone cannot be compared with the train set
        raise ValueError(f"method.outliers = {m.outliers}: use 0 (of every near one), 2 or more")
    try:
        if m.backend == "stable_diffusion":
            sampler_steps(alphas_cumprod(), m.sample_steps, m.stop)
            stable_diffusion.check_numbers(m.guidance, m.block)
        else:
            sampler_steps(alphas_cumprod(m.schedule, m.times), m.sample_steps, m.stop)
            check_sampler(m.sampler, m.guidance, m.eta)
    except ValueError as error:
        raise ValueError(f"sampling: {error}") from None
    if m.backend == "stable_diffusion":
        stable_diffusion.check_files(m.weights)
        return
    _network(config, 1)
    if not 0 <= m.blur < np.inf:
        raise ValueError(f"method.blur = {m.blur}: use 0 (none) or more")
    if not 0 <= m.dropout <= 1:
        raise ValueError(f"method.dropout = {m.dropout}: use 0 (never) to 1 (always)")
