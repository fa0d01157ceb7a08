"""Schedules: functions of the step, exact in float32 to the end.

optax's cosine forms 1 + cos(x), which cancels near x = pi (relative error 1e-4 of a final rate);
sin^2 of the remaining share does not.
"""

import jax.numpy as jnp
import numpy as np

from ood_jax.types import Array, Schedule


def cosine(start: float, end: float, steps: int) -> Schedule:
    """start at step 0, end at step `steps` and after, half a cosine between."""

    def value(step: Array) -> Array:
        left = (steps - jnp.minimum(step, steps)) / max(steps, 1)
        return end + (start - end) * jnp.sin(jnp.pi / 2 * left) ** 2

    return value


def warmup_cosine(peak: float, end: float, *, warmup: int, steps: int) -> Schedule:
    """DINO's: linear from 0, the peak at step warmup - 1, then a cosine to `end` at `steps`."""
    decay = cosine(peak, end, steps - warmup)
    return _warmed_up(peak, warmup, lambda step: decay(jnp.maximum(step - warmup, 0)))


def warmup_steps(
    peak: float, drops: tuple[float, ...], divisor: float, *, warmup: int, steps: int
) -> Schedule:
    """Linear from 0, the peak at step warmup - 1, then divided again and again.

    drops: shares of `steps`, ascending; from the step nearest to each on, the rate is `divisor`
    times smaller. One within the warm-up shows after it.
    """
    begins = np.array([round(share * steps) for share in drops], np.int32)
    rates = peak / divisor ** np.arange(len(drops) + 1)
    return _warmed_up(
        peak,
        warmup,
        lambda step: jnp.asarray(rates, float)[jnp.searchsorted(begins, step, side="right")],
    )


def _warmed_up(peak: float, warmup: int, after: Schedule) -> Schedule:
    def value(step: Array) -> Array:
        return jnp.where(step < warmup, peak * step / max(warmup - 1, 1), after(step))

    return value


def stairs(start: float, end: float, *, epochs: int, steps_per_epoch: float) -> Schedule:
    """start in the first epoch, end from the last of `epochs` on, linear once an epoch between."""

    def value(step: Array) -> Array:
        share = jnp.minimum(jnp.floor(step / steps_per_epoch) / max(epochs - 1, 1), 1.0)
        return start + (end - start) * share

    return value


def ramp(end: float, steps: int) -> Schedule:
    """Linear from 0 at step 0 to `end` at `steps` and after; constant where steps is 0."""
    return lambda step: end * jnp.minimum(step / steps if steps else jnp.ones(()), 1.0)
