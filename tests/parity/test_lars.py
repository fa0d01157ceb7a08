"""Golden lars: SimCLR's LARS, torchlars, DINO's and OECL's, step by step, from a config."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import optim
from ood_jax.config import base

NEVER = r"(?!)"  # matches no path


def _names(g, which=lambda param: True):
    """The regex of the parameters that `which` picks by their first values."""
    chosen = [re.escape(str(n)) for i, n in enumerate(g["names"]) if which(g[f"param{i}"])]
    return "|".join(chosen) or NEVER


def _settings(g):
    """Variant -> keys of config.optim."""
    vectors = _names(g, lambda param: param.ndim == 1)
    none = {"no_decay": NEVER, "no_adapt": NEVER}
    eps = float(g["eps_torchlars"])
    return {
        "simclr": {"lars_order": "simclr"},
        "simclr_popular_momentum": {"lars_order": "simclr_popular"},
        "torchlars": none | {"lars_order": "torchlars", "eps": eps},
        "dino_lars": {"lars_order": "dino", "eps": 0.0, "no_decay": vectors, "no_adapt": vectors},
        "oecl_official_is_sgd": {"name": "sgd", "no_decay": NEVER},
        "oecl_lars_with_ignore": {"lars_order": "dino", "eps": eps},
    }


VARIANTS = tuple(_settings({"names": (), "eps_torchlars": 0.0}))


def _config(g, variant):
    config = base()
    config.optim.name, config.optim.clip, config.optim.freeze = "lars", 0.0, NEVER
    config.optim.momentum, config.optim.trust = float(g["momentum"]), float(g["trust_coef"])
    for key, value in _settings(g)[variant].items():
        config.optim[key] = value
    config.train.steps_per_epoch = 1.0
    return config


def _before(g, variant, j):
    """Parameter j before each step, float64."""
    return np.concatenate([g[f"param{j}"][None], g[f"{variant}/param{j}"][:-1]]).astype(np.float64)


def _told_by_sgd(g, j):
    """The gradients plain SGD was given, float64: what its momentum did not have before.

    NaN where a learning rate of 0 hides them.
    """
    before = _before(g, "oecl_official_is_sgd", j)
    lrs = np.where(g["lrs"] > 0, g["lrs"], np.nan).reshape(-1, *[1] * (before.ndim - 1))
    velocity = (before - g[f"oecl_official_is_sgd/param{j}"]) / lrs
    earlier = np.concatenate([np.zeros_like(velocity[:1]), velocity[:-1]])
    return velocity - float(g["momentum"]) * earlier - float(g["weight_decay"]) * before


def _carried(g, variant, j):
    """What the gradients of parameter j held beside themselves when `variant` got them.

    The first set was made in one go over the same arrays, and both of SimCLR's variants add their
    decay to the gradient in place: whoever came later found it in there. A right file has none.
    """
    decay, earlier = float(g["weight_decay"]), ("simclr", "simclr_popular_momentum")
    left = decay * np.stack([_before(g, name, j) for name in earlier])
    told = _told_by_sgd(g, j)
    seen = np.isfinite(told)
    extra, both = (told - g[f"grad{j}"])[seen], left.sum(0)[seen]
    share = np.vdot(extra, both) / (np.vdot(both, both) or 1.0)
    assert min(abs(share), abs(share - 1)) < 0.1, share
    count = earlier.index(variant) if variant in earlier else len(earlier)
    return round(share) * left[:count].sum(0)


def _gradients(g, variant, j, dtype):
    """[steps, ...] as `variant` got them.

    The file rounds them to float32 and the official code ran on what they were before: at float64
    that is taken from plain SGD's steps, where it is what was stored to within that rounding.
    """
    grads = g[f"grad{j}"].astype(np.float64)
    if dtype == jnp.float64:
        exact = _told_by_sgd(g, j) - _carried(g, "oecl_official_is_sgd", j)
        seen = np.isfinite(exact) & (grads != 0)  # 0 is 0, not 1e-16: torchlars tells them apart
        np.testing.assert_allclose(exact[seen], grads[seen], rtol=2**-23, atol=1e-12)
        grads[seen] = exact[seen]
    return grads + _carried(g, variant, j)


def _tree(g, arrays, dtype):
    """Arrays in the order of the names, by their paths."""
    return {
        str(name): jnp.asarray(array, dtype) for name, array in zip(g["names"], arrays, strict=True)
    }


def _steps(g, variant, dtype):
    """The parameters after each step, through the jitted optimiser."""
    optimiser = optim.build(_config(g, variant))
    lrs = jnp.asarray(g["lrs"], dtype)
    rates = optim.Schedules(lambda s: lrs[s], lambda s: jnp.asarray(g["weight_decay"], dtype))

    @jax.jit
    def step(params, state, grads, i):
        state = optim.with_rates(state, rates, i)
        moves, state = optimiser.update(grads, state, params, train_step=i)
        return jax.tree.map(jnp.add, params, moves), state

    count = range(len(g["names"]))
    params = _tree(g, [g[f"param{j}"] for j in count], dtype)
    grads = _tree(g, [_gradients(g, variant, j, dtype) for j in count], dtype)
    state = optimiser.init(params)
    for i in range(len(lrs)):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i], grads), i)
        yield params


def _check(g, variant, dtype, tolerance):
    for i, params in enumerate(_steps(g, variant, dtype)):
        for j, name in enumerate(map(str, g["names"])):
            expected = g[f"{variant}/param{j}"][i]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                params[name], expected, rtol=0, atol=tolerance * scale, err_msg=name
            )


@pytest.fixture(scope="module")
def g(golden):
    return golden("lars")


def test_every_variant_of_the_file_is_here(g):
    assert {key.split("/")[0] for key in g if "/" in key} == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32(g, variant):
    _check(g, variant, jnp.float32, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64(g, variant):
    with jax.enable_x64(True):
        _check(g, variant, jnp.float64, 1e-12)
