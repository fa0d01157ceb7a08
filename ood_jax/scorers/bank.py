"""A bank of train features, and what scores reduce of its inner products with test rows.

[tests, bank] never exists: products come block by block. `reduce` is pure, for a bank on the
devices; stream.py runs the same kernel, `scan`, over a bank that stays on the host.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ood_jax.scorers.cosine import EPS, check_features, squared_norms, unit
from ood_jax.types import Array, PyTree

# exp((cos - 1) / t + HEADROOM) neither overflows in the sum of 1e9 rows (e^81 < e^88.7) nor
# underflows for t >= FIXED: cos <= 1 is all the maximum that a stable sum needs.
HEADROOM = 60.0
FIXED = 2.0 / (HEADROOM + 80.0)


class Bank(NamedTuple):
    """Rows and what each is multiplied by: row m stands for the vector scales[m] * rows[m].

    rows: float32 [M, D], as they were given: a unit bank is no second copy. scales: float32 [M].
    """

    rows: Array
    scales: Array


def unit_bank(values: Array) -> Bank:
    """Features [M, D] -> the bank of values / |values|; a zero vector stays zero.

    Raises:
      ValueError: as `check_features`.
    """
    rows = check_features(values, "bank")
    scales = 1 / np.maximum(np.sqrt(squared_norms(rows)), EPS)
    return Bank(rows, scales.astype(np.float32))


class Part(NamedTuple):
    """A block of the bank: vectors [block, D], their row numbers int32 [block], which count."""

    rows: jax.Array
    scales: jax.Array
    numbers: jax.Array
    counts: jax.Array


class Reduction(Protocol):
    """What is made of the products; hashable, since it is compiled for.

    start: rows -> carry, leaves [n, ...]. add: (carry, part, unit test rows [n, D], own) -> carry;
    own int32 [n]: test row n is this bank row, which does not count for it. merge: carries of
    several devices, leaves [devices, n, ...] -> carry. finish: carry -> result, leaves [n, ...].
    """

    def start(self, count: Any) -> PyTree: ...
    def add(self, carry: Any, part: Part, test: jax.Array, own: jax.Array | None) -> PyTree: ...
    def merge(self, carry: Any) -> PyTree: ...
    def finish(self, carry: Any) -> PyTree: ...


class LogSumExp(NamedTuple):
    """log sum_m exp(<test, bank_m> / temperature), float32 [n]; of a bank of unit vectors."""

    temperature: float

    def start(self, count: Any) -> tuple[jax.Array, jax.Array]:
        # Rounding may take a cosine just above 1: HEADROOM has room for that.
        top = 1.0 if self.temperature >= FIXED else -2.0
        return jnp.full((count,), top, jnp.float32), jnp.zeros((count,), jnp.float32)

    def add(self, carry: Any, part: Part, test: jax.Array, own: jax.Array | None) -> Any:
        top, total = carry
        cosines = jnp.matmul(part.rows, test.T, precision=lax.Precision.HIGHEST)
        counts = part.counts[:, None]
        if own is not None:
            counts = counts & (part.numbers[:, None] != own)
        cosines = jnp.where(counts, cosines * part.scales[:, None], -jnp.inf)
        new = jnp.maximum(top, cosines.max(0)) if self.temperature < FIXED else top
        terms = jnp.exp((cosines - new) / self.temperature + HEADROOM)
        return new, total * jnp.exp((top - new) / self.temperature) + terms.sum(0)

    def merge(self, carry: Any) -> Any:
        tops, totals = carry
        top = tops.max(0)
        return top, (totals * jnp.exp((tops - top) / self.temperature)).sum(0)

    def finish(self, carry: Any) -> jax.Array:
        top, total = carry
        return jnp.log(total) - HEADROOM + top / self.temperature


class TopK(NamedTuple):
    """The largest products, descending: float32 [n, k], and their bank rows, int32 [n, k].

    Of equal products the first row is taken. approximate: `lax.approx_max_k` within a block: fast
    on TPU, exact elsewhere.
    """

    k: int
    approximate: bool = False

    def start(self, count: Any) -> tuple[jax.Array, jax.Array]:
        shape = (count, self.k)
        return jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)

    def add(self, carry: Any, part: Part, test: jax.Array, own: jax.Array | None) -> Any:
        products = jnp.matmul(test, part.rows.T, precision=lax.Precision.HIGHEST)
        counts = part.counts[None, :]
        if own is not None:
            counts = counts & (part.numbers[None, :] != own[:, None])
        products = jnp.where(counts, products * part.scales[None, :], -jnp.inf)
        if self.approximate:
            values, places = lax.approx_max_k(products, min(self.k, products.shape[1]))
            numbers = part.numbers[places]
        else:
            values, numbers = products, jnp.broadcast_to(part.numbers, products.shape)
        return self._best(carry, values, numbers)

    def _best(self, carry: Any, values: jax.Array, numbers: jax.Array) -> Any:
        # Found ones first: few others then move what `top_k` has gathered, and ties are theirs.
        best, places = lax.top_k(jnp.concatenate([carry[0], values], 1), self.k)
        found = jnp.take_along_axis(carry[1], jnp.minimum(places, self.k - 1), 1)
        new = jnp.take_along_axis(numbers, jnp.maximum(places - self.k, 0), 1)
        return best, jnp.where(places < self.k, found, new)

    def merge(self, carry: Any) -> Any:
        values, rows = (jnp.concatenate(list(leaf), 1) for leaf in carry)
        values, rows = lax.sort((-values, rows), dimension=1, num_keys=2)
        return -values[:, : self.k], rows[:, : self.k]

    def finish(self, carry: Any) -> Any:
        return carry


def top_k(bank: Bank, test: Array, *, k: int, block: int) -> tuple[jax.Array, jax.Array]:
    """The k largest inner products of bank rows with test / |test|; pure, see `TopK`.

    bank: rows [M, D], k <= M. test: [n, D] of any norm. block: bank rows compared at once.
    """
    return reduce(bank, test, TopK(k), block=block)


def reduce(bank: Bank, test: Array, reduction: Reduction, *, block: int) -> Any:
    """`reduction` over the whole bank for test / |test|, [n, D]; pure, n may be symbolic."""
    carry = reduction.start(test.shape[0])
    window = (0, 0, bank.rows.shape[0])
    carry = scan(reduction, carry, bank, window, unit(test), None, block)
    return reduction.finish(carry)


def scan(
    reduction: Reduction,
    carry: PyTree,
    bank: Bank,
    window: Any,
    test: jax.Array,
    own: jax.Array | None,
    block: int,
) -> PyTree:
    """`reduction` over the rows of a bank that count, block by block; carry -> carry.

    window: int32 (number of the bank's first row, first and end of the rows that count). test: unit
    rows [n, D]. own: as in `Reduction.add`.
    """
    bank = Bank(*map(jnp.asarray, bank))
    size = bank.rows.shape[0]
    block = -(-size // -(-size // block))  # as many blocks, all nearly full
    first, low, high = window

    def step(i: Array, carry: PyTree) -> PyTree:
        # A slice has a fixed size: the last block overlaps the one before.
        start = jnp.minimum(i * block, size - block)
        rows, scales = (lax.dynamic_slice_in_dim(x, start, block) for x in bank)
        local = start + jnp.arange(block, dtype=jnp.int32)
        counts = (local >= jnp.maximum(i * block, low)) & (local < high)
        return reduction.add(carry, Part(rows, scales, first + local, counts), test, own)

    return lax.fori_loop(low // block, -(-high // block), step, carry)
