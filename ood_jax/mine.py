"""Near outliers of embeddings by sampling around their boundary (OAML, step 1; NPOS; DreamOOD).

Embeddings of norm 1, class by class or all at once: those farthest from their k-th neighbour are
boundary points; Gaussian noise around them makes candidates, of which the farthest are kept.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ood_jax import sharding
from ood_jax.banks import banks, check_embeddings
from ood_jax.farthest import Found, Table, farthest, groups, merged
from ood_jax.neighbours import boundary, cells, kth_distances
from ood_jax.scorers.cosine import unit
from ood_jax.scorers.rows import padded, rounded
from ood_jax.types import Array

HIGHEST = lax.Precision.HIGHEST
SELECTIONS = ("paper", "official")
AT_ONCE = 8  # rounds
MEMORY = 1024**3  # bytes of a block of products on a device
NEEDS = ("neighbour", "points")  # settings that no bank may have fewer rows than


class Settings(NamedTuple):
    """How outliers are mined; the defaults are the released code's numbers.

    neighbour: K, the neighbour whose distance counts; a row is its own first. points: boundary
    points. picked: of these drawn for each round; as many = all of them. sigma: deviation of the
    noise in each dimension, of embeddings of norm 1. draws: of noise, which all points share, in a
    round. keep: candidates kept for each point in a round. rounds: each with new noise.
    class_wise: banks and boundary points of each class, or of all. selection: paper = of each
    point's candidates the farthest | official = those the released code takes, which reads the
    table of distances interleaved: in effect random ones. memory: bytes of a block of products on
    a device.
    """

    neighbour: int = 300
    points: int = 50
    picked: int = 50
    sigma: float = 0.07
    draws: int = 1500
    keep: int = 2
    rounds: int = 100
    class_wise: bool = True
    selection: str = "paper"
    memory: int = MEMORY


class Mined(NamedTuple):
    """M outliers, by class, round and boundary point.

    outliers: float32 [M, D], of norm 1. source: int32 [M], the row of embeddings that each was made
    from. distances: float32 [M], squared, of each to its k-th neighbour in its bank. labels: int32
    [M], of the source; -1 = made from all classes at once.
    """

    outliers: np.ndarray
    source: np.ndarray
    distances: np.ndarray
    labels: np.ndarray


def mine(
    embeddings: Array,
    labels: Array | None,
    *,
    settings: Settings,
    key: Array,
    mesh: Mesh | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Mined:
    """`settings.rounds` * picked * keep outliers of each class, or of all embeddings at once.

    The same for every number of devices, which share the rounds, and whatever `memory` is. On a
    device lie the bank of one class, float32 [n, D], and at most `memory` bytes of products.

    Args:
      embeddings: [N, D], of any norm. labels: int [N], -1 = none, left out class by class; None
        unless class_wise. key: all random numbers come from it. mesh: None = this process's first
        device. done: told how many more outliers were made.

    Raises:
      ValueError: settings that make no sense, more neighbours or points than a class has, labels
        missing; embeddings that are not finite, of norm 0, or all the same.
    """
    check_settings(settings)
    rows = check_embeddings(embeddings)
    found = banks(rows, labels, class_wise=settings.class_wise, **largest_need(settings))
    mesh = sharding.data_parallel(mesh) if mesh else sharding.local_mesh()
    parts = []
    for label, members in found:
        bank = rows if len(members) == len(rows) else rows[members]
        own = jax.random.fold_in(key, label + 1)
        outliers, source, distances = _mine_bank(bank, settings, own, mesh, done)
        named = np.full(len(outliers), label, np.int32)
        parts.append((outliers, members[source].astype(np.int32), distances, named))
    return Mined(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def _mine_bank(
    rows: np.ndarray, settings: Settings, key: Array, mesh: Mesh, done: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outliers [M, D], their rows of the bank [M] and distances [M].

    AT_ONCE rounds a device in one program: what several devices of a host allocate in it is given
    back when it ends.
    """
    near = partial(kth_distances, rows, k=settings.neighbour, memory=settings.memory, mesh=mesh)
    chosen = boundary(near(rows), settings.points)
    parts = sharding.parts(mesh)
    size = rounded(len(rows))
    shared = (padded(rows, size, slice(None)), np.int32(len(rows)), chosen.astype(np.int32))
    many = min(AT_ONCE, -(-settings.rounds // parts)) * parts
    found = []
    for start in range(0, settings.rounds, many):
        numbers = np.arange(start, start + many, dtype=np.uint32)
        keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(numbers)
        made = _compiled(settings._replace(rounds=0), size, mesh)(np.asarray(keys), shared)
        outliers, source = (np.asarray(jax.device_get(x)) for x in made)
        kept = min(many, settings.rounds - start)
        found.append((outliers[:kept].reshape(-1, rows.shape[1]), source[:kept].reshape(-1)))
        done(len(found[-1][0]))
    outliers, source = (np.concatenate(leaves) for leaves in zip(*found, strict=True))
    return outliers, chosen[source], near(outliers)


@lru_cache
def _compiled(settings: Settings, size: int, mesh: Mesh) -> Any:
    def own(keys: Array, shared: tuple[Array, ...]) -> tuple[jax.Array, jax.Array]:
        bank, count, chosen = shared
        bank = unit(bank)
        towards = jnp.matmul(bank[chosen], bank.T, precision=HIGHEST)
        towards = jnp.where(jnp.arange(size) < count, towards, -jnp.inf)

        def one_round(limit: jax.Array, key: Any) -> Any:
            for_points, for_noise = jax.random.split(jax.random.wrap_key_data(key))
            points = jnp.arange(settings.points)
            if settings.picked < settings.points:
                points = jax.random.permutation(for_points, points)[: settings.picked]
            noise = jax.random.normal(for_noise, (settings.draws, bank.shape[1]), jnp.float32)
            noise = settings.sigma * noise
            kept, limit = farthest_of_round(
                bank, towards[points], chosen[points], noise, limit, settings=settings, cells=many
            )
            source = points[kept // settings.draws]
            return limit, (unit(bank[chosen[source]] + noise[kept % settings.draws]), source)

        return lax.scan(one_round, jnp.full(settings.picked, jnp.inf), keys)[1]

    many = cells(mesh)

    return jax.jit(sharding.on_each_device(mesh, own))


def farthest_of_round(
    bank: Array,
    towards: Array,
    chosen: Array,
    noise: Array,
    limit: Array,
    *,
    settings: Settings,
    cells: int,
) -> tuple[jax.Array, jax.Array]:
    """Which candidates of one round are kept: numbers p * draws + l, int32 [points * keep].

    Products of the noise with the bank are made for as many draws at once as `memory` holds.

    Args:
      bank: [M, D], of norm 1. towards: [P, M], cosines of the boundary points with it; -inf = the
        row does not count. chosen: int32 [P], the points' rows. noise: [L, D], times sigma. limit:
        [P], as `farthest` takes it.

    Returns:
      The numbers, by point and the farthest first; and the limit to begin the next round with.
    """
    bank, towards, chosen, noise = map(jnp.asarray, (bank, towards, chosen, noise))
    points, draws = len(chosen), len(noise)
    at_once = max(1, min(draws, settings.memory // (4 * bank.shape[0])))
    interleaved = settings.selection == "official"
    tables = jnp.asarray(groups(points, draws, at_once, interleaved=interleaved))
    noise = jnp.pad(noise, ((0, len(tables) * at_once - draws), (0, 0)))

    def of_part(limit: jax.Array, part: Any) -> tuple[jax.Array, Found]:
        noise, members, start = part
        moved = jnp.matmul(noise, bank.T, precision=HIGHEST)
        squares = 1 + 2 * moved[:, chosen].T + jnp.sum(noise * noise, 1)
        norms = jnp.sqrt(jnp.maximum(squares, 1e-12))
        table = Table(towards, moved, norms, members)
        found = farthest(table, limit, k=settings.neighbour, keep=settings.keep, cells=cells)
        p, l = found.candidates // at_once, found.candidates % at_once
        return found.limit, found._replace(candidates=p * draws + start + l)

    starts = jnp.arange(len(tables)) * at_once
    parts = noise.reshape(len(tables), at_once, -1)
    begin, found = lax.scan(of_part, jnp.asarray(limit), (parts, tables, starts))
    _, kept = merged(found, settings.keep)
    if interleaved:  # the code takes for the place in the column, / P, the number of a draw
        kept = jnp.arange(points)[:, None] * draws + kept // points
    return kept.reshape(-1), begin


def largest_need(settings: Settings) -> dict[str, Any]:
    """How many rows a bank must have, and which setting says so: arguments of `banks`."""
    needs = {name: getattr(settings, name) for name in NEEDS}
    name = max(needs, key=lambda name: needs[name])
    return {"least": needs[name], "what": f"method.{name} = {needs[name]}"}


def check_settings(settings: Settings) -> None:
    """Refuses settings that make no sense.

    Raises:
      ValueError: naming the setting, what it is and what it may be.
    """
    for name in ("neighbour", "points", "picked", "draws", "keep", "rounds", "memory"):
        if getattr(settings, name) < 1:
            raise ValueError(f"method.{name} = {getattr(settings, name)}: use 1 or more")
    if not 0 < settings.sigma < np.inf:
        raise ValueError(f"method.sigma = {settings.sigma}: use a number above 0")
    if settings.keep > settings.draws:
        raise ValueError(
            f"method.keep = {settings.keep} of method.draws = {settings.draws}: keep fewer"
        )
    if settings.picked > settings.points:
        raise ValueError(
            f"method.picked = {settings.picked} of method.points = {settings.points}: pick fewer"
        )
    if settings.selection not in SELECTIONS:
        raise ValueError(f"method.selection {settings.selection!r}: use {' or '.join(SELECTIONS)}")
