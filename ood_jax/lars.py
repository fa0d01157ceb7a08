"""LARS (You et al. 2017, arXiv:1708.03888), in the four orders that official code has it in.

All of them make each tensor's step as long as `trust` times the tensor itself. They differ in
whether the norm of the gradient counts the decay, and in what the momentum accumulates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ood_jax.types import Array, PyTree

ORDERS = ("simclr", "simclr_popular", "torchlars", "dino")

Mask = Callable[[PyTree], PyTree]  # parameters -> bool leaves


def lars(
    learning_rate: float | Array,
    weight_decay: float | Array,
    *,
    order: str,
    momentum: float,
    trust: float,
    eps: float,
    decays: Mask,
    adapts: Mask,
) -> optax.GradientTransformation:
    """LARS in one of ORDERS; `decays` and `adapts` say which tensors get decay and trust ratio.

    simclr: decay, ratio, rate, momentum (google-research/simclr lars_optimizer.py; optax.lars).
    simclr_popular: decay, momentum, ratio, rate (the same file, classic_momentum=False).
    torchlars: ratio without the decay in its norm, decay, momentum, rate (kakaobrain/torchlars,
        which CSI runs; it excludes no tensor).
    dino: decay, ratio, momentum, rate (facebookresearch/dino utils.LARS excludes tensors of one
        dimension; real_OECL's LARS with its `ignore` key set is this one too; both run with eps 0).
    eps is added to the ratio's divisor by torchlars and dino; SimCLR's code has none.

    Raises:
      ValueError: no such order.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    trace = optax.trace(momentum)
    rate = optax.scale_by_learning_rate(learning_rate)

    def ratio(eps: float = 0.0) -> optax.GradientTransformation:
        return optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust, eps=eps), adapts)

    if order == "simclr":
        return optax.chain(decay, ratio(), rate, trace)
    if order == "simclr_popular":
        return optax.chain(decay, trace, ratio(), rate)
    if order == "dino":
        return optax.chain(decay, ratio(eps), trace, rate)
    if order == "torchlars":
        scaled = decay_then_scale(weight_decay, trust=trust, eps=eps, decays=decays, adapts=adapts)
        return optax.chain(scaled, trace, rate)
    raise ValueError(f"order {order!r}: use {' or '.join(ORDERS)}")


def decay_then_scale(
    weight_decay: float | Array, *, trust: float, eps: float, decays: Mask, adapts: Mask
) -> optax.GradientTransformation:
    """g -> (g + decay p) trust |p| / (|g| + decay |p| + eps), as kakaobrain/torchlars has it.

    The ratio is 1 where a tensor or its gradient is zero, and where `adapts` says no.
    """

    def scale(g: Array, p: Array, decayed: bool, adapted: bool) -> Array:
        decay = weight_decay if decayed else 0.0
        step = g + decay * p
        if not adapted:
            return step
        size, slope = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
        moving = (size > 0) & (slope > 0)
        divisor = jnp.where(moving, slope + decay * size + eps, 1.0)
        return step * jnp.where(moving, trust * size / divisor, 1.0).astype(step.dtype)

    def update(grads: PyTree, params: PyTree | None = None) -> PyTree:
        if params is None:
            raise ValueError("this optimiser scales by the parameters: pass params to its update")
        return jax.tree.map(scale, grads, params, decays(params), adapts(params))

    return optax.stateless(update)
