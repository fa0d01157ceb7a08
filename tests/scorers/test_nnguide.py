"""NNGuide against float64 brute force: which train images are the bank, leave-one-out, refusals."""

import jax
import numpy as np
import pytest

from ood_jax import config, sharding
from ood_jax.scorers.nnguide import nnguide
from ood_jax.types import Features, LastLayer

RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(6, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)


def build(devices=2, neighbours=3, share=0.5):
    found = config.base("dino_negatives").score
    with found.unlocked():
        found.block, found.nnguide_neighbours, found.nnguide_share = 4, neighbours, share
    return nnguide(found, sharding.make_mesh(devices))


def features(count, seed, reads="features"):
    rows = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    layer = LastLayer(KERNEL, BIAS, reads)
    if reads == "features":
        return Features(rows, last_layer=layer)
    return Features(rows[:, :2], projections=rows, last_layer=layer)


def energy(rows):
    return np.log(np.exp(np.float64(rows) @ KERNEL + BIAS).sum(1))


def unit(rows):
    return np.float64(rows) / np.linalg.norm(np.float64(rows), axis=1, keepdims=True)


def guided(bank, test, k, leave_out=None):
    similarity = unit(test) @ (unit(bank) * energy(bank)[:, None]).T
    if leave_out is not None:
        similarity[leave_out, np.arange(len(bank))] = -np.inf
    return -energy(test) * -np.sort(-similarity, 1)[:, :k].mean(1)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("reads", ["features", "projections"])
def test_brute_force(devices, reads):
    scorer = build(devices)
    train, test = features(21, 0, reads), features(9, 1, reads)._replace(last_layer=None)
    state = scorer.fit(train)
    rows, other = (x.projections if reads == "projections" else x.features for x in (train, test))
    assert len(set(state.drawn)) == 11 and scorer.facts(state) == {"bank": 11}
    np.testing.assert_array_equal(state.drawn, scorer.fit(train).drawn)
    expected = guided(rows[state.drawn], other, 3)
    np.testing.assert_allclose(scorer.streamed(state, test), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(scorer.score)(state, test), expected, rtol=1e-5)
    expected = guided(rows[state.drawn], rows, 3, leave_out=state.drawn)
    np.testing.assert_allclose(scorer.score_train(state), expected, rtol=1e-5)


def test_a_whole_train_set_is_not_copied():
    train = features(21, 0)
    assert build(share=1.0).fit(train).bank.rows is train.features


def test_a_small_share_is_still_enough_for_its_neighbours():
    scorer = build(share=0.1)
    assert scorer.facts(scorer.fit(features(20, 0))) == {"bank": 4}
    assert scorer.facts(scorer.fit(features(90, 0))) == {"bank": 9}


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"nnguide_share = 0.0, .*above 0"):
        build(share=0.0)
    with pytest.raises(ValueError, match=r"nnguide_neighbours = 0: .* 1 neighbour or more"):
        build(neighbours=0)
    with pytest.raises(ValueError, match=r"nnguide_neighbours = 3: there are 2 .* use 1 to 2"):
        build(share=1.0).fit(features(2, 0))
    with pytest.raises(ValueError, match="needs a linear last layer"):
        build().fit(Features(np.ones((9, 6), np.float32)))
    scorer = build(share=1.0)
    with pytest.raises(ValueError, match=r"leave-one-out needs a bank of 4 or more, .* has 3"):
        scorer.score_train(scorer.fit(features(3, 0)))
    with pytest.raises(ValueError, match="6 wide"):
        scorer.streamed(scorer.fit(features(9, 0)), Features(np.ones((2, 5), np.float32)))
