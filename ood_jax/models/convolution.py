"""Convolutions and norms that the networks on images share."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from ood_jax.models.batch_norm import BatchNorm

NORMS = ("batch", "group")
GROUPS = 8
HE_FAN_IN = nn.initializers.he_normal()  # truncated
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    channels: int,
    kernel: int,
    stride: int,
    dtype: jnp.dtype,
    name: str,
    init: nn.initializers.Initializer = HE_FAN_IN,
) -> nn.Conv:
    """A square convolution without bias, padded so that stride 1 keeps the size."""
    pad = kernel // 2
    return nn.Conv(
        channels,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )


def norm_layer(kind: str, train: bool, dtype: jnp.dtype) -> Callable[..., nn.Module]:
    """What makes norms of `kind`, one of NORMS, given their name."""
    if kind == "group":
        return partial(nn.GroupNorm, num_groups=GROUPS, epsilon=1e-5, dtype=dtype)
    return partial(BatchNorm, train=train, dtype=dtype)


def check_norm(norm: str) -> None:
    """Refuses a model.norm that is none of NORMS.

    Raises:
      ValueError: naming them.
    """
    if norm not in NORMS:
        raise ValueError(f"model.norm {norm!r}: use {' or '.join(NORMS)}")


def sixth(model: ConfigDict) -> int:
    """n of a CIFAR network of depth 6n + 4: three stages of n blocks of two convolutions.

    Raises:
      ValueError: another depth, a stem that such a network does not have, an unknown norm.
    """
    check_norm(model.norm)
    if model.stem != "cifar":
        raise ValueError(f"model.stem {model.stem!r} of a {model.name}: it has cifar alone")
    n, rest = divmod(model.depth - 4, 6)
    if n < 1 or rest:
        near = 6 * max(n, 1) + 4
        raise ValueError(
            f"model.depth {model.depth} of a {model.name}: use 6 n + 4, such as {near} or"
            f" {near + 6}"
        )
    return n
