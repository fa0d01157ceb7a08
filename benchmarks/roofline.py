"""The work in a traced step, what a chip can do at best, and how long it therefore takes at least.

Bytes on the wire are those that a device sends in the ring algorithm, the least that any one needs:
an all-reduce of S bytes among n devices 2 (n-1)/n S, a reduce-scatter of S or an all-gather to S
(n-1)/n S, an all-to-all (n-1)/n S, a collective-permute S. Where the devices do not all hang on one
fast interconnect, the collective is taken in two levels: within each domain of d devices as above,
and between m domains for the d-th part that each device then has.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

TB, GB, GIB = 1e12, 1e9, 1024**3


class Chip(NamedTuple):
    """flops: a second, bfloat16, dense. memory: bytes. bandwidth: of memory, bytes/s.

    link, network: bytes/s that a chip sends within a domain of `domain` chips and beyond it.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    domain: int
    network: float


# "Cloud TPU documentation", pages TPU v4, v5e, v5p and v6e (key specifications). Bandwidth of the
# interconnect is given for both directions, so half of it is sent; v4's page has 1.1 PB/s of
# all-reduce a pod, over 4,096 chips (the same division gives the halves of v5e and v6e). Between
# pods: the data centre network (v5e 6.4 and v6e 25.6 Tbit/s a pod of 256, v5p 50 Gbit/s a chip).
# H100 SXM: "NVIDIA H100 Tensor Core GPU" data sheet (dense; NVLink 900 GB/s in both directions) and
# "NVIDIA DGX H100" (8 GPUs, a ConnectX-7 of 400 Gbit/s each).
CHIPS = {
    "v4": Chip(275 * TB, 32 * GIB, 1200 * GB, 1.1e15 / 4096, 4096, 0.0),
    "v5e": Chip(197 * TB, 16 * GB, 819 * GB, 200 * GB, 256, 6.4e12 / 8 / 256),
    "v5p": Chip(459 * TB, 95 * GIB, 2765 * GB, 600 * GB, 8960, 50e9 / 8),
    "v6e": Chip(918 * TB, 32 * GB, 1638 * GB, 400 * GB, 256, 25.6e12 / 8 / 256),
    "H100": Chip(989 * TB, 80 * GB, 3350 * GB, 450 * GB, 8, 400e9 / 8),
}


class Bounds(NamedTuple):
    """Seconds of a step by what could limit it, each at least; `limit` is the name of the largest.

    images: a second, at most. fits: is what a step holds less than the chip's memory?
    """

    compute: float
    memory: float
    interconnect: float
    limit: str
    images: float
    fits: bool


def on_wire(
    kind: str, size: float, members: tuple[int, ...], domain: int = 0
) -> tuple[float, float]:
    """Bytes that a device sends in one collective: (within its domain, between domains).

    size: bytes of the result on a device. members: the devices of a group; those of one domain have
    the same number // domain (0 = all are in one).

    Raises:
      ValueError: a kind of collective without a formula.
    """
    count = len(members)
    domains = len({number // domain for number in members}) if domain else 1
    inside = count / domains
    if kind == "collective-permute":
        moved = size if count > 1 else 0.0
        return (moved, 0.0) if domains == 1 else (0.0, moved)
    if kind == "all-to-all":
        return size * (inside - 1) / count, size * (count - inside) / count
    if kind not in ("all-reduce", "all-gather", "reduce-scatter"):
        raise ValueError(f"no ring formula for {kind!r}")
    whole = size * count if kind == "reduce-scatter" else size
    passes = 2 if kind == "all-reduce" else 1
    within = passes * whole * (inside - 1) / inside
    return within, passes * whole / inside * (domains - 1) / domains


def bounds(
    chip: Chip,
    *,
    flops: float,
    accessed: float,
    fused: bool,
    held: float,
    wire: tuple[float, float],
    images: int,
) -> Bounds:
    """Least times of a step that does `flops`, moves `accessed` bytes of memory and sends `wire`.

    fused: is `accessed` by the chip's own compiler? Another one fuses less and moves more: then
    memory is left out of what limits. held: bytes that a step needs on the device. images: of a
    step, on all devices.
    """
    within, between = wire
    times = {
        "compute": flops / chip.flops,
        "memory": accessed / chip.bandwidth,
        "interconnect": within / chip.link + (between / chip.network if between else 0.0),
    }
    limit = max((name for name in times if fused or name != "memory"), key=lambda name: times[name])
    return Bounds(
        **times, limit=limit, images=images / max(times[limit], 1e-30), fits=held <= chip.memory
    )


def products(jaxpr: Any) -> float:
    """Operations of all matrix products and convolutions in a jaxpr, two for a multiply-add.

    Loops of a known length in full, of branches the dearest, a mapping over devices on all of them.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            lhs, rhs = (variable.aval.shape for variable in equation.invars)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * _summed(params, lhs, rhs)
            continue
        inner = [products(part) for part in _parts(params)]
        if name == "shard_map":
            inner = [params["mesh"].size * count for count in inner]
        total += params.get("length", 1) * (max(inner) if name == "cond" else sum(inner))
    return total


def _summed(params: dict[str, Any], lhs: tuple[int, ...], rhs: tuple[int, ...]) -> float:
    """How many products make one number of the result."""
    numbers = params["dimension_numbers"]
    if "lhs_dilation" not in params:
        return math.prod(lhs[axis] for axis in numbers[0][0])
    _, channels, *pixels = (rhs[axis] for axis in numbers.rhs_spec)
    # Between the pixels of a dilated image are zeros.
    return channels * math.prod(pixels) / math.prod(params["lhs_dilation"])


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
