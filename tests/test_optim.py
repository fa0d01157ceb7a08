"""SGD, LARS, multipliers: closed forms, what waits, what is left alone, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import optim
from ood_jax.config import base
from ood_jax.lars import ORDERS

NEVER = r"(?!)"
PARAMS = {
    "trunk": {"kernel": np.linspace(-1, 2, 12).reshape(3, 4), "bias": np.zeros(4)},
    "head": {"last": {"kernel": np.linspace(0.5, 1, 8).reshape(4, 2)}},
}
GRADIENTS = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), PARAMS)


def _config(name, **keys):
    config = base()
    config.optim.name, config.optim.clip, config.optim.freeze_epochs = name, 0.0, 0.0
    for key, value in keys.items():
        config.optim[key] = value
    config.train.steps_per_epoch = 1.0
    return config


def _run(config, lrs, *, decay=0.0, params=PARAMS, gradients=GRADIENTS, trains=".*"):
    """The parameters after each step, at a learning rate for each."""
    optimiser = optim.build(config, trains)
    rates = optim.Schedules(lambda s: jnp.asarray(lrs)[s], lambda s: decay)
    params, gradients = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t) for t in (params, gradients)
    )

    @jax.jit
    def step(params, state, i):
        state = optim.with_rates(state, rates, i)
        moves, state = optimiser.update(gradients, state, params, train_step=i)
        return jax.tree.map(jnp.add, params, moves), state

    state, out = optimiser.init(params), []
    for i in range(len(lrs)):
        params, state = step(params, state, i)
        out.append(jax.tree.map(np.asarray, params))
    return out


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_at_varying_rates(nesterov):
    lrs, decay, momentum = (0.1, 0.4, 0.05), 0.01, 0.8
    config = _config("sgd", momentum=momentum, nesterov=nesterov)
    found = _run(config, lrs, decay=decay)[-1]["trunk"]
    for name, exempt in (("kernel", False), ("bias", True)):
        p, g, buffer = PARAMS["trunk"][name], GRADIENTS["trunk"][name], 0.0
        for lr in lrs:
            step = g if exempt else g + decay * p
            buffer = momentum * buffer + step
            p = p - lr * (step + momentum * buffer if nesterov else buffer)
        np.testing.assert_allclose(found[name], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_a_first_lars_step_is_a_share_of_the_tensor(order):
    config = _config("lars", lars_order=order, trust=0.01, eps=0.0)
    (after,) = _run(config, (2.0,))
    for path in (("trunk", "kernel"), ("head", "last", "kernel")):
        before, moved = PARAMS, after
        for part in path:
            before, moved = before[part], moved[part]
        length = np.linalg.norm(moved - before) / np.linalg.norm(before)
        np.testing.assert_allclose(length, 0.01 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(after["trunk"]["bias"], -2 * GRADIENTS["trunk"]["bias"], rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_lars_that_adapts_nothing_is_sgd(order):
    lrs = (0.1, 0.1, 0.1)  # simclr's order puts the rate inside the momentum
    lars = _run(_config("lars", lars_order=order, no_adapt=".*"), lrs, decay=0.1)[-1]
    sgd = _run(_config("sgd"), lrs, decay=0.1)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), lars, sgd)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("zero", ["parameters", "gradients"])
def test_a_zero_tensor_keeps_the_plain_rate(order, zero):
    config = _config("lars", lars_order=order, no_adapt=NEVER, no_decay=NEVER, eps=0.0)
    nothing = jax.tree.map(np.zeros_like, PARAMS)
    if zero == "parameters":
        (after,) = _run(config, (0.5,), decay=0.1, params=nothing)
        expected = jax.tree.map(lambda g: -0.5 * g, GRADIENTS)
    else:
        (after,) = _run(config, (0.5,), gradients=nothing)
        expected = PARAMS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_the_orders_part_where_the_rate_varies():
    lrs = (0.1, 1.0, 0.1, 0.5)
    ends = [
        _run(_config("lars", lars_order=o, eps=0.0), lrs, decay=0.1)[-1]["trunk"]["kernel"]
        for o in ORDERS
    ]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert np.abs(one - other).max() > 1e-5


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_what_is_frozen_waits_and_starts_with_no_momentum(name):
    freeze = {"freeze": "head/last/.*", "freeze_epochs": 2.0, "trust": 0.1}
    after = _run(_config(name, **freeze), (0.1,) * 4)
    every = [PARAMS, *after]
    early = [tree["trunk"]["kernel"] for tree in every]
    late = [tree["head"]["last"]["kernel"] for tree in every]
    assert np.abs(early[1] - early[0]).max() > 1e-4
    np.testing.assert_allclose(late[2], late[0], rtol=1e-7)
    fresh = _run(_config(name, trust=0.1), (0.1,) * 2)
    for i in range(2):
        np.testing.assert_array_equal(late[3 + i], fresh[i]["head"]["last"]["kernel"])


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_an_update_moves_only_what_it_trains_and_clips_before(name):
    config = _config(name, clip=0.5, trust=0.1, no_adapt=".*")
    (after,) = _run(config, (1.0,), trains="head/.*")
    np.testing.assert_allclose(after["trunk"]["kernel"], PARAMS["trunk"]["kernel"], rtol=1e-7)
    moved = after["head"]["last"]["kernel"] - PARAMS["head"]["last"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(moved), 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "adam"}, "optim.name 'adam': use adamw or sgd or lars"),
        ({"lars_order": "tf"}, "optim.lars_order 'tf': use simclr or simclr_popular or"),
        ({"lr": -1.0}, "optim.lr -1: use a number of 0 or more"),
        ({"lr": float("nan")}, "optim.lr nan"),
        ({"weight_decay": float("inf")}, "optim.weight_decay inf"),
        ({"momentum": 1.0}, "optim.momentum 1: use 0 .* below 1"),
        ({"name": "sgd", "momentum": -0.1}, "optim.momentum -0.1"),
        ({"momentum": float("nan")}, "optim.momentum nan"),
        ({"trust": 0.0}, "optim.trust 0: use a number above 0"),
        ({"nesterov": True}, "optim.nesterov: lars has none"),
        ({"name": "adamw", "nesterov": True}, "optim.nesterov: adamw has none"),
        ({"no_adapt": "("}, r"optim.no_adapt '\(' is no regular expression"),
        ({"no_decay": "["}, r"optim.no_decay '\[' is no regular expression"),
        ({"freeze": "*"}, r"optim.freeze '\*' is no regular expression"),
    ],
)
def test_errors_name_the_key(keys, message):
    with pytest.raises(ValueError, match=message):
        optim.build(_config(**{"name": "lars"} | keys))


RULES = (r"head/.*=10", r".*/kernel=0.25")  # the head's kernel matches both


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_multipliers_scale_what_the_first_rule_matches_and_nothing_else(name):
    lrs, keys = (0.1, 0.02, 0.3), {"momentum": 0.9, "no_decay": ".*", "weight_decay": 0.0}
    plain = _run(_config(name, **keys), lrs)
    found = _run(_config(name, **keys, multipliers=RULES), lrs)
    factors = {("trunk", "kernel"): 0.25, ("trunk", "bias"): 1.0, ("head", "last", "kernel"): 10.0}
    for (part, *path), factor in factors.items():
        before, one, other = PARAMS[part], plain[-1][part], found[-1][part]
        for key in path:
            before, one, other = before[key], one[key], other[key]
        assert np.abs(one - before).max() > 1e-3
        np.testing.assert_allclose(other - before, factor * (one - before), rtol=1e-4, atol=1e-6)


def test_a_multiplier_is_a_rate_of_its_own_whatever_decays():
    """Weight decay and momentum with it: as a tenth of --config.optim.lr would have it."""
    keys = {"momentum": 0.8, "no_decay": NEVER}
    found = _run(_config("sgd", **keys, multipliers=(".*=.1",)), (0.1, 0.4), decay=0.1)
    slow = _run(_config("sgd", **keys), (0.01, 0.04), decay=0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, slow)


def test_a_multiplier_of_0_holds_still_and_a_rule_has_the_whole_path():
    (found,) = _run(_config("sgd", multipliers=("trunk/kernel=0",)), (0.5,))
    np.testing.assert_array_equal(found["trunk"]["kernel"], np.float32(PARAMS["trunk"]["kernel"]))
    moved = found["head"]["last"]["kernel"] - PARAMS["head"]["last"]["kernel"]
    np.testing.assert_allclose(moved, -0.5 * GRADIENTS["head"]["last"]["kernel"], rtol=1e-5)


def test_a_rule_that_matches_no_parameter_is_named():
    with pytest.raises(ValueError, match=r"optim.multipliers: 'kernel=0' matches no parameter"):
        _run(_config("sgd", multipliers=("trunk/kernel=0", "kernel=0")), (0.5,))


def test_without_multipliers_a_checkpoint_is_as_it_was():
    def state(**keys):
        return jax.tree.structure(optim.build(_config("adamw", **keys)).init(PARAMS))

    assert len(optim.build(_config("adamw")).init(PARAMS)) == 2  # clipping, and what moves
    assert state() == state(multipliers=()) != state(multipliers=RULES)


@pytest.mark.parametrize("rule", ["head/.*", "head/.*=", "=", "head=fast", "head=-1", "head=nan"])
def test_what_is_no_multiplier_is_named(rule):
    with pytest.raises(ValueError, match=rf"multipliers: '{re.escape(rule)}' is not REGEX=NUMBER"):
        optim.build(_config("sgd", multipliers=(rule,)))


def test_a_multiplier_s_regex_may_hold_an_equals_sign_and_must_compile():
    optim.build(_config("sgd", multipliers=("head/(?=last).*=2e-1",)))
    with pytest.raises(ValueError, match=r"optim.multipliers '\(' is no regular expression"):
        optim.build(_config("sgd", multipliers=("(=2",)))
