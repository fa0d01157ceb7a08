"""The candidates farthest from a bank, found without the distances of the others.

A candidate is (z_p + n_l) / |z_p + n_l|: a boundary point moved by a noise vector that all points
share. Its cosine with bank row m is therefore (own[p, m] + moved[l, m]) / norms[p, l], with own and
moved two small products: at OAML's numbers 1/50 of multiplying every candidate by the bank. And
only the few of a group that are farthest need their k-th cosine: for all others it is enough to
count that k bank rows lie nearer than a limit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ood_jax.neighbours import kth_largest, mapped
from ood_jax.types import Array

EVALUATED = 16  # of a group at once, those that fewest bank rows are near to


class Table(NamedTuple):
    """Candidates (p, l), number p * L + l, as cosines with a bank.

    own: float32 [P, M], of the points with the bank; -inf = the row does not count. moved: [L, M],
    products of the noise with the bank. norms: [P, L], above 0. members: int32 [G, S], the
    candidates of each group; P * L = none.
    """

    own: Array
    moved: Array
    norms: Array
    members: Array


class Found(NamedTuple):
    """cosines: float32 [G, keep], k-th largest ones, the smallest (farthest) first; inf = none.

    candidates: int32 [G, keep], their numbers. limit: float32 [G], a cosine below which about half
    of EVALUATED of the group's candidates lie: where to begin with others of the same kind.
    """

    cosines: jax.Array
    candidates: jax.Array
    limit: jax.Array


def groups(points: int, draws: int, at_once: int, *, interleaved: bool) -> np.ndarray:
    """Members of the groups of which the farthest are kept, for parts of the draws.

    interleaved: False = the draws around a point are its group. True = as OAML's code (inherited
    from NPOS), which reads the flat table of P * L distances as [L, P]: group g is every P-th of
    them from g on.

    Returns:
      int32 [parts, points, S], numbers p * at_once + l in the part; points * at_once = none.
    """
    tables = []
    for start in range(0, draws, at_once):
        l, p = np.meshgrid(np.arange(at_once), np.arange(points))
        numbers, there = p * at_once + l, start + l < draws
        group = (p * draws + start + l) % points if interleaved else p
        tables.append([numbers[there & (group == g)] for g in range(points)])
    size = max(len(row) for table in tables for row in table)
    out = np.full((len(tables), points, size), points * at_once, np.int32)
    for i, table in enumerate(tables):
        for g, row in enumerate(table):
            out[i, g, : len(row)] = row
    return out


def farthest(table: Table, limit: Array, *, k: int, keep: int, cells: int) -> Found:
    """The `keep` of each group whose k-th largest cosine is smallest; exact to float32 rounding.

    limit: float32 [G], where to begin, inf = anywhere: speed, not the result, depends on it. Each
    pass counts, for every candidate, the bank rows above its group's limit; at least k = it lies
    nearer than that. Of the others those with the smallest counts are evaluated, and the limit
    becomes the keep-th best, until no other can be better.
    """
    table = Table(*map(jnp.asarray, table))
    count, size = table.members.shape
    none = table.norms.size
    few = min(max(EVALUATED, keep), size)

    def one_pass(state: Any) -> Any:
        limit, done, best, guess = state
        counts = _counts(table, limit, done, cells)
        taken = (table.members[:, :, None] == best[1][:, None, :]).any(-1)
        counts = jnp.where(taken | (table.members == none), jnp.inf, counts)
        smallest, places = lax.top_k(-counts, few)
        chosen = jnp.take_along_axis(table.members, places, 1)
        chosen = jnp.where(jnp.isinf(smallest), none, chosen)
        cosines = _evaluated(table, chosen, done, k, cells)
        new = _best((cosines, chosen), best, keep)
        worst = new[0][:, -1]
        all_seen = (jnp.sum(counts < k, 1) <= few) | (worst == limit)  # equal: ties are left
        ended = done | ((worst <= limit) & all_seen)
        guess = jnp.where(done, guess, jnp.sort(cosines, 1)[:, few // 2])
        return jnp.where(done, limit, worst), ended, new, guess

    best = (jnp.full((count, keep), jnp.inf), jnp.full((count, keep), none, jnp.int32))
    start = (jnp.asarray(limit), jnp.zeros(count, bool), best, jnp.asarray(limit))
    _, _, best, guess = lax.while_loop(lambda state: ~state[1].all(), one_pass, start)
    return Found(*best, guess)


def _best(one: Any, other: Any, keep: int) -> tuple[jax.Array, jax.Array]:
    cosines, candidates = (jnp.concatenate(pair, 1) for pair in zip(one, other, strict=True))
    order = jnp.argsort(cosines, axis=1)[:, :keep]
    return jnp.take_along_axis(cosines, order, 1), jnp.take_along_axis(candidates, order, 1)


def merged(found: Found, keep: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and candidates of the farthest of several parts, leaves [parts, G, keep]."""
    flat = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in found[:2])
    cosines, candidates = flat
    return _best((cosines, candidates), (cosines[:, :0], candidates[:, :0]), keep)


def _counts(table: Table, limit: Array, done: Array, cells: int) -> jax.Array:
    """How many bank rows lie at least as near as the group's limit: float32 [G, S]; inf = none.

    One after another, blocks of noise that stay in a core's cache meet all points; points of which
    no group waits are left out.
    """
    (points, draws), size = table.norms.shape, table.own.shape[1]
    rows = max(1, min(draws, cells // size))
    flat = jnp.full(points * draws, -jnp.inf)
    least = flat.at[table.members].set(limit[:, None], mode="drop").reshape(points, draws)
    waiting = (flat.at[table.members].set(~done[:, None], mode="drop") > 0).reshape(points, draws)
    least, waiting = least * table.norms, waiting.any(1)

    def of_block(i: Array, counts: jax.Array) -> jax.Array:
        start = jnp.minimum(i * rows, draws - rows)  # the last one overlaps the one before
        moved = lax.dynamic_slice_in_dim(table.moved, start, rows)

        def of_point(point: tuple[jax.Array, ...]) -> jax.Array:
            own, least, wanted = point
            return lax.cond(
                wanted,
                lambda: jnp.sum((own + moved >= least[:, None]).astype(jnp.float32), axis=1),
                lambda: jnp.full(rows, jnp.inf),
            )

        limits = lax.dynamic_slice_in_dim(least, start, rows, 1)
        found = mapped(of_point, (table.own, limits, waiting), cells // (rows * size))
        return lax.dynamic_update_slice_in_dim(counts, found, start, 1)

    counts = lax.fori_loop(0, -(-draws // rows), of_block, jnp.zeros((points, draws)))
    return counts.reshape(-1).at[table.members].get(mode="fill", fill_value=jnp.inf)


def _evaluated(table: Table, chosen: Array, done: Array, k: int, cells: int) -> jax.Array:
    """The k-th largest cosine of the chosen candidates [G, C]: float32 [G, C]; inf = none."""
    draws = table.norms.shape[1]

    def of_group(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        numbers, done = group

        def evaluate() -> jax.Array:
            products = table.own[numbers // draws] + table.moved[numbers % draws]
            return kth_largest(products, k) / table.norms.reshape(-1)[numbers]

        return lax.cond(done, lambda: jnp.full(numbers.shape, jnp.inf), evaluate)

    at_once = cells // (chosen.shape[1] * table.own.shape[1])
    found = mapped(of_group, (jnp.minimum(chosen, table.norms.size - 1), done), at_once)
    return jnp.where(chosen == table.norms.size, jnp.inf, found)
