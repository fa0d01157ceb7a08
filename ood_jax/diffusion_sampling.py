"""Vectors drawn from a diffusion, given outlier embeddings: DDIM, PLMS, guidance.

The step numbers and coefficients are those of Stable Diffusion's ddim.py and plms.py.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.diffusion import Predict
from ood_jax.scorers.cosine import check_features
from ood_jax.types import Array, PyTree

SAMPLERS = ("plms", "ddim")

# Of Adams and Bashforth, for the latest prediction and the three before it: as soon as there are
# two, three, four of them (Liu et al. 2022, Eq. 9 and appendix).
MULTISTEP = np.array(
    [[3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


class Steps(NamedTuple):
    """What a sampler passes, in its order, float32 [S] each: alpha_bar before and after a step."""

    before: np.ndarray
    after: np.ndarray


def sampler_steps(alphas: np.ndarray, steps: int = 50, stop: int = 0) -> Steps:
    """Evenly spaced steps down to step `stop` of the schedule, as Stable Diffusion spaces them.

    For T = 1,000 and 50 steps: 981, 961, ..., 1, then 0. Steps at or below `stop` are left out, and
    the last one ends there.

    Args:
      alphas: [T], see `alphas_cumprod`. stop: 0 = the clean vector, what OAML's released code
        keeps. Above, the noisy vector at that step, OAML's "noisy feature map obtained at the T-th
        noise adding process" (section 4.1): the reverse process there has the distribution of the
        clean vector after so many steps of noise.

    Raises:
      ValueError: steps that do not divide T or number T, a stop that leaves no step.
    """
    total = len(alphas)
    if not 1 <= steps < total or total % steps:
        fit = [n for n in range(1, total) if total % n == 0]
        near = sorted(fit, key=lambda n: abs(n - steps))[:2]
        raise ValueError(
            f"steps = {steps} does not divide the {total} noise steps, or is all of them: use"
            f" {' or '.join(str(n) for n in sorted(near))}"
        )
    times = np.arange(steps)[::-1] * (total // steps) + 1
    if not 0 <= stop < times[0]:
        raise ValueError(f"stop = {stop}: use 0 (the clean vector) to {times[0] - 1}")
    times = times[times > stop]
    after = np.append(times[1:], stop)
    return Steps(alphas[times].astype(np.float32), alphas[after].astype(np.float32))


def guided(predict: Predict, condition: Array, scale: float) -> Callable[[Array, Array], Array]:
    """(x [B, E], alpha_bar) -> null + scale (conditional - null), classifier-free guidance.

    Ho & Salimans (2022) Eq. 6 with scale = 1 + w, as Stable Diffusion's code counts it: 1 = the
    condition alone, 0 = without condition; these two predict once, all others twice.
    """

    def once(x: Array, alpha_bar: Array, told: bool) -> Array:
        signal = jnp.broadcast_to(jnp.sqrt(alpha_bar), len(x))
        return predict(x, signal, condition, jnp.full(len(x), told))

    def noise(x: Array, alpha_bar: Array) -> Array:
        if scale in (0.0, 1.0):
            return once(x, alpha_bar, bool(scale))
        null = once(x, alpha_bar, False)
        return null + scale * (once(x, alpha_bar, True) - null)

    return noise


def ddim(
    noise: Callable[[Array, Array], Array],
    x: Array,
    steps: Steps,
    *,
    eta: float = 0.0,
    fresh: Callable[[Array], Array] = lambda step: jnp.zeros(()),
) -> Array:
    """DDIM, Song et al. (2021) Eq. 12 and 16: x [B, E] of pure noise -> [B, E] after the last step.

    noise: (x, alpha_bar) -> predicted noise. eta: share of DDPM's randomness; 0 = none. fresh: step
    number -> Gaussian noise [B, E], read where eta is not 0.
    """

    def step(x: Array, now: tuple[Array, ...]) -> tuple[Array, None]:
        before, after, number = now
        spread = jnp.zeros(())
        if eta:
            spread = eta * jnp.sqrt((1 - after) / (1 - before) * (1 - before / after))
        x = _moved(x, noise(x, before), before, after, spread)
        return (x + spread * fresh(number) if eta else x), None

    return jax.lax.scan(step, x, (*map(jnp.asarray, steps), jnp.arange(len(steps.before))))[0]


def plms(noise: Callable[[Array, Array], Array], x: Array, steps: Steps) -> Array:
    """Pseudo linear multistep, Liu et al. (2022), as Stable Diffusion's plms.py: arguments of ddim.

    The first step is the improved Euler's of plms.py, two predictions; the paper begins with three
    steps of pseudo Runge-Kutta, four predictions each.
    """
    before, after = (jnp.asarray(values) for values in steps)
    first = noise(x, before[0])
    ahead = _moved(x, first, before[0], after[0])
    second = noise(ahead, before[min(1, len(before) - 1)])
    x = _moved(x, (first + second) / 2, before[0], after[0])
    if len(before) == 1:
        return x

    def step(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple, None]:
        x, past = carry
        before, after, weights = now
        past = jnp.concatenate([noise(x, before)[None], past[:-1]])
        return (_moved(x, jnp.tensordot(weights, past, 1), before, after), past), None

    past = jnp.concatenate([first[None], jnp.zeros((3, *x.shape), x.dtype)])
    order = np.minimum(np.arange(len(before) - 1), len(MULTISTEP) - 1)
    weights = jnp.asarray(MULTISTEP[order], x.dtype)
    return jax.lax.scan(step, (x, past), (before[1:], after[1:], weights))[0][0]


def _moved(x: Array, noise: Array, before: Array, after: Array, spread: Array | float = 0) -> Array:
    clean = (x - jnp.sqrt(1 - before) * noise) / jnp.sqrt(before)
    return jnp.sqrt(after) * clean + jnp.sqrt(1 - after - spread**2) * noise


def sample(
    apply: Callable[..., Array],
    params: PyTree,
    conditions: Array,
    *,
    size: int,
    steps: Steps,
    mesh: Mesh,
    key: Array,
    sampler: str = "plms",
    guidance: float = 7.5,
    eta: float = 0.0,
    block: int = 1024,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """One vector for each outlier embedding, OAML section 4.1: float32 [M, size], on every host.

    Row r is drawn from (key, r): it does not matter how many devices and blocks there are.

    Args:
      apply, params: of a `models.diffusion.Denoiser`. conditions: float32 [M, C] on the host, the
        same in every process, standardised. size: E, of the vectors. steps: see `sampler_steps`.
      guidance: see `guided`. eta: of ddim. block: rows at once, rounded up to a multiple of the
        mesh; 0 or more rows of filling are computed and dropped. done: told how many more rows are.

    Raises:
      ValueError: an unknown sampler, numbers that make no sense, conditions that are not [M, C] or
        not finite.
    """
    check_sampler(sampler, guidance, eta)
    if block < 1:
        raise ValueError(f"block = {block} rows at once: use 1 or more")
    conditions = check_features(conditions, "outlier")
    params = sharding.replicate(mesh, params)
    draw = partial(_drawn, apply=apply, size=size, sampler=sampler, guidance=guidance, eta=eta)
    whole: list[np.ndarray] = []
    for part in _blocks(conditions, block, mesh):
        whole.append(jax.device_get(draw(params, *part, steps, key, mesh=mesh)))
        done(min(len(whole[-1]), len(conditions) - len(whole[-1]) * (len(whole) - 1)))
    return np.concatenate(whole)[: len(conditions)]


def check_sampler(sampler: str, guidance: float, eta: float) -> None:
    """Refuses an unknown sampler and numbers that make no sense.

    Raises:
      ValueError: naming the number, and what it may be.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: use {' or '.join(SAMPLERS)}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance = {guidance}: use a number, 1 for the condition alone")
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise ValueError(f"eta = {eta} of {sampler}: use 0, or up to 1 with ddim")


def _blocks(rows: np.ndarray, block: int, mesh: Mesh) -> Iterator[tuple[jax.Array, jax.Array]]:
    """(rows, their numbers) on the mesh, all of one shape, the last filled up with zeros."""
    devices = sharding.parts(mesh)
    block = -(-min(block, len(rows)) // devices) * devices
    where = sharding.batch_sharding(mesh)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        part = np.pad(part, ((0, block - len(part)), (0, 0)))
        numbers = np.arange(start, start + block, dtype=np.int32)
        yield sharding.place((part, numbers), (where, where))


@partial(jax.jit, static_argnames=("apply", "size", "sampler", "guidance", "eta", "mesh"))
def _drawn(
    params: PyTree,
    condition: Array,
    row: Array,
    steps: Steps,
    key: Array,
    *,
    apply: Callable[..., Array],
    size: int,
    sampler: str,
    guidance: float,
    eta: float,
    mesh: Mesh,
) -> Array:
    keys = jax.vmap(partial(jax.random.fold_in, key))(row)

    def normal(step: Array | int) -> Array:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), (size,)))(keys)

    noise = guided(partial(apply, params), condition, guidance)
    if sampler == "plms":
        drawn = plms(noise, normal(0), steps)
    else:
        drawn = ddim(noise, normal(0), steps, eta=eta, fresh=lambda number: normal(number + 1))
    return jax.lax.with_sharding_constraint(drawn, sharding.replicated(mesh))
