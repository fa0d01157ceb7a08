"""Scores of logits against float64 and scipy, and where the network is very sure."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from ood_jax import config, scorers, sharding
from ood_jax.types import Features


def build(name, **settings):
    c = config.base("dino_negatives").score
    for key, value in settings.items():
        c[key] = value
    return scorers.build(name, c, sharding.make_mesh(1))


def some(count, classes, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32) * scale


def scored(scorer, logits, second=None, train=None):
    def held(x):
        return Features(x, logits=x, second_logits=second)

    state = scorer.fit(held(logits if train is None else train))
    return np.asarray(jax.jit(scorer.score)(state, held(logits)))


def test_msp_orders_what_float32_calls_certain():
    logits = np.float32([[0, 20, 0], [0, 30, 0], [0, 60, 3], [1, 1, 1]])
    found = scored(build("msp"), logits)
    expected = 1 - softmax(np.float64(logits), axis=1)[3].max(), 2 * np.exp(-20.0)
    np.testing.assert_allclose([found[3], found[0]], expected, rtol=1e-5)
    assert found[2] < found[1] < found[0] < found[3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_energy(temperature):
    logits = some(20, 7)
    expected = -temperature * logsumexp(np.float64(logits) / temperature, axis=1)
    found = scored(build("energy", energy_temperature=temperature), logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("top", [2, 5, 100])
def test_gen_in_float64(scale, top):
    logits = some(50, 9, scale=scale)
    wide = np.sort(np.float64(logits), axis=1)[:, ::-1]
    log_p = wide - logsumexp(wide, axis=1, keepdims=True)
    rest = logsumexp(wide[:, 1:], axis=1) - logsumexp(wide, axis=1)
    log_q = np.column_stack([rest, np.log1p(-np.exp(log_p[:, 1:]))])
    expected = np.exp(0.1 * (log_p + log_q))[:, :top].sum(1)
    np.testing.assert_allclose(scored(build("gen", gen_top=top), logits), expected, rtol=2e-5)


@pytest.mark.parametrize("name", ["msp", "gen"])
def test_a_constant_added_to_all_logits_is_nothing(name):
    logits = some(20, 6)
    found = scored(build(name), logits + 8)
    np.testing.assert_allclose(found, scored(build(name), logits), rtol=1e-4)


@pytest.mark.parametrize("name", ["msp", "max_logit", "energy", "gen"])
def test_sure_images_score_lower_and_classes_have_no_order(name):
    logits = some(20, 6, scale=1.0)
    plain, sure = scored(build(name), logits), scored(build(name), logits * 4)
    assert (sure[logits.max(1) > 0.5] < plain[logits.max(1) > 0.5]).all()
    np.testing.assert_allclose(scored(build(name), logits[:, ::-1]), plain, rtol=1e-5)


def test_klm_is_scipys_entropy():
    train, test = some(200, 5), some(40, 5, seed=1)
    train[:, 3] = -20  # a class that nothing is predicted as
    shares = softmax(np.float64(train), axis=1)
    means = [shares[train.argmax(1) == c].mean(0) for c in (0, 1, 2, 4)]
    expected = np.min(
        [entropy(softmax(np.float64(test), axis=1), m[None], axis=1) for m in means], 0
    )
    scorer = build("klm")
    np.testing.assert_allclose(scored(scorer, test, train=train), expected, rtol=1e-4, atol=1e-6)
    assert scorer.facts(scorer.fit(Features(train, logits=train))) == {"classes_predicted": 4}


def test_klm_of_a_class_mean_itself_is_nothing():
    train = np.tile(some(1, 1000, scale=1.0), (3, 1))
    found = scored(build("klm"), train)
    assert (np.abs(found) < 1e-8).all()


def test_l1_discrepancy():
    first, second = some(20, 6), some(20, 6, seed=1)
    scorer = build("l1_discrepancy")
    a, b = (softmax(np.float64(x), axis=1) for x in (first, second))
    found = scored(scorer, first, second)
    np.testing.assert_allclose(found, np.abs(a - b).sum(1), rtol=1e-5)
    np.testing.assert_allclose(scored(scorer, first, first + 0), 0, atol=1e-6)
    apart = np.float32([[100, 0]]), np.float32([[0, 100]])
    np.testing.assert_allclose(scored(scorer, *apart), 2.0)
    with pytest.raises(ValueError, match=r"5 wide, the .* 6: same network"):
        scorer.fit(Features(first, logits=first, second_logits=second[:, :5]))
