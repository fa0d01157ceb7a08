"""What keys an image's random views where a batch holds it more than once."""

import jax
import jax.numpy as jnp

from ood_jax.types import Array

SPREAD = -1640531535  # odd, so that no two counts meet: 2^32 over the golden ratio


def draw_numbers(index: Array) -> jax.Array:
    """The numbers of a global batch's images, int32 [B], told apart where one comes again.

    The first of each keeps its number. A set smaller than the batch, one outlier shown 128 times,
    or a balanced batch so has other views of an image each time, whatever the devices.
    """
    earlier = jnp.tril(index[:, None] == index, k=-1).sum(1, dtype=jnp.int32)
    return index.astype(jnp.int32) + earlier * jnp.int32(SPREAD)
