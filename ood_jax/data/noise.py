"""Images of noise: the farthest out-of-distribution sets, made anew from a fixed seed."""

import functools

import numpy as np

from ood_jax.data.source import Source, from_array

COUNT = 1_000  # images, unless the source says otherwise
MOST = 100_000  # 1.2 GB while they are made


def open_noise(name: str) -> Source:
    """Noise images, 32 x 32: "gaussian" is N(0.5, 0.25) clipped to [0, 1], "uniform" U(0, 1).

    "gaussian/5000" makes 5,000 images instead of 1,000.

    Raises:
      ValueError: no such noise, or a count that is not a number from 1 to MOST.
    """
    kind, slash, text = name.partition("/")
    if kind not in ("gaussian", "uniform"):
        raise ValueError(f"no noise {kind!r}: there are gaussian, uniform")
    if slash and not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MOST):
        raise ValueError(f"noise:{name}: write a count from 1 to {MOST}, such as noise:{kind}/5000")
    return from_array(f"noise:{name}", _noise(kind, int(text) if slash else COUNT))


@functools.cache
def _noise(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng([2026, 20])
    shape = (count, 32, 32, 3)
    if kind == "uniform":
        return rng.integers(256, size=shape, dtype=np.uint8)
    values = 0.5 + 0.25 * rng.standard_normal(shape, dtype=np.float32)
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
