"""How much outlier features tell of student features: CLUB's upper bound (Cheng et al. 2020).

OAML (Gao et al.) makes it small. q(y|x) is a Gaussian whose mean and log-variance come as arrays
from a network on x (models/gaussian_mlp.py).
"""

import jax
import jax.numpy as jnp

from ood_jax.types import Array

DIRECTIONS = ("outlier_given_student", "student_given_outlier")


def given_and_predicted(student: Array, outliers: Array, *, direction: str) -> tuple[Array, Array]:
    """(x, y) of q(y|x), of the features [B, D] of student images and [B, E] of outliers.

    direction: outlier_given_student (paper, Eq. 1) | student_given_outlier (released code).

    Raises:
      ValueError: another direction, or another number of outliers than of images.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"mutual information {direction!r}: use {' or '.join(DIRECTIONS)}")
    if len(student) != len(outliers):
        raise ValueError(
            f"mutual information pairs each of {len(student)} images with one outlier: got"
            f" {len(outliers)}"
        )
    return (student, outliers) if direction == DIRECTIONS[0] else (outliers, student)


def club(mean: Array, log_variance: Array, y: Array) -> jax.Array:
    """log q(y_i|x_i) - mean_j log q(y_j|x_i): its mean over i is the bound (OAML, Eq. 1).

    The mean over j has a closed form, so that nothing of size [B, B] is made: with m and v the
    batch's mean and (biased) variance of y, mean_j (y_j - mu_i)^2 = (m - mu_i)^2 + v.

    Args:
      mean, log_variance: [B, D], of q(.|x_i). y: [B, D].

    Returns:
      float32 [B], nats; 0 in sum where y does not vary over the batch.

    Raises:
      ValueError: shapes that differ.
    """
    mean, log_variance, y = _checked(mean, log_variance, y)
    centre = y.mean(0)
    variance = jnp.square(y - centre).mean(0)
    # The difference of two squares as a product, which does not cancel where mu is far away.
    apart = (centre - y) * (centre + y - 2 * mean) + variance
    return jnp.sum(apart * jnp.exp(-log_variance), axis=-1) / 2


def log_likelihood(mean: Array, log_variance: Array, y: Array) -> jax.Array:
    """sum_d -(y - mu)^2 / exp(s) - s: what q is trained to make large (paper; code never does).

    As CLUB's and OAML's code have it, without the 1/2 of the exponent: twice the log-density less
    its constant, D ln 2 pi, so of the same maximum.

    Args:
      mean, log_variance: [B, D], of q(.|x_i); s above. y: [B, D].

    Returns:
      float32 [B].

    Raises:
      ValueError: shapes that differ.
    """
    mean, log_variance, y = _checked(mean, log_variance, y)
    return -jnp.sum(jnp.square(y - mean) * jnp.exp(-log_variance) + log_variance, axis=-1)


def _checked(mean: Array, log_variance: Array, y: Array) -> list[jax.Array]:
    shapes = [list(jnp.shape(x)) for x in (mean, log_variance, y)]
    if len(shapes[2]) != 2 or shapes[0] != shapes[2] or shapes[1] != shapes[2]:
        raise ValueError(
            f"q has mean {shapes[0]} and log-variance {shapes[1]} where y is {shapes[2]}: give"
            " three [B, D]"
        )
    return [jnp.asarray(x).astype(jnp.float32) for x in (mean, log_variance, y)]
