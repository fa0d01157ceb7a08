"""ViM and Residual: what lies inside and outside the principal subspace."""

import jax
import numpy as np
import pytest

from ood_jax import config, scorers, sharding
from ood_jax.scorers.subspace import dimension
from ood_jax.types import Features, LastLayer

WIDTH, DIM = 12, 4
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(WIDTH, 3)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
BASIS = np.linalg.qr(RNG.normal(size=(WIDTH, WIDTH)))[0]
ORIGIN = -np.linalg.pinv(np.float64(KERNEL).T) @ BIAS
INSIDE, OUTSIDE = BASIS[:, :DIM], BASIS[:, DIM:]


def build(name, dim=DIM):
    c = config.base("dino_negatives").score
    c.vim_dim = dim
    return scorers.build(name, c, sharding.make_mesh(1))


def features(rows):
    rows = np.float32(rows)
    return Features(rows, rows @ KERNEL + BIAS, last_layer=LastLayer(KERNEL, BIAS, "features"))


def train(noise=0.01, count=200):
    spread = RNG.normal(size=(count, DIM)) * 5
    return ORIGIN + spread @ INSIDE.T + noise * RNG.normal(size=(count, WIDTH - DIM)) @ OUTSIDE.T


def scored(scorer, state, rows):
    return np.asarray(jax.jit(scorer.score)(state, Features(np.float32(rows))))


def test_residual_is_the_norm_outside():
    scorer = build("residual")
    state = scorer.fit(features(train(1e-3)))
    inside, outside = RNG.normal(size=(20, DIM)), RNG.normal(size=(20, WIDTH - DIM))
    rows = ORIGIN + 3 * inside @ INSIDE.T + outside @ OUTSIDE.T
    expected = np.linalg.norm(outside, axis=1)
    np.testing.assert_allclose(scored(scorer, state, rows), expected, rtol=1e-2)
    assert scorer.facts(state) == {"dim": DIM}
    np.testing.assert_allclose(state.null.T @ state.null, np.eye(WIDTH - DIM), atol=1e-5)


def test_vim_adds_a_logit_as_large_as_the_others():
    scorer, residual = build("vim"), build("residual")
    rows = train(0.5)
    state = scorer.fit(features(rows))
    left = scored(residual, residual.fit(features(rows)), rows)
    largest = (np.float32(rows) @ KERNEL + BIAS).max(1)
    alpha = scorer.facts(state)["alpha"]
    np.testing.assert_allclose(alpha, largest.mean() / left.mean(), rtol=1e-4)
    energy = np.log(np.exp(np.float64(rows) @ KERNEL + BIAS).sum(1))
    np.testing.assert_allclose(
        scored(scorer, state, rows), alpha * left - energy, rtol=1e-4, atol=1e-4
    )


def test_nothing_outside():
    with pytest.raises(ValueError, match=f"train features lie in {DIM} dimensions"):
        build("vim").fit(features(np.float32(train(0.0)) * 0 + np.float32(ORIGIN)))
    assert np.isfinite(
        scored(build("residual"), build("residual").fit(features(train(0.0))), train())
    ).all()


def test_fewer_images_than_dimensions():
    rows = train(0.5, count=7)
    scorer = build("vim")
    assert np.isfinite(scored(scorer, scorer.fit(features(rows)), rows)).all()


@pytest.mark.parametrize(
    "width, expected", [(64, 32), (767, 383), (768, 512), (2047, 512), (2048, 1000)]
)
def test_the_rule_of_its_authors(width, expected):
    assert dimension(0, width) == expected
    assert dimension(5, width) == 5


def test_too_large_a_dimension():
    with pytest.raises(ValueError, match=r"score.vim_dim = 12: .*12 wide; use 1 to 11"):
        build("vim", WIDTH).fit(features(train()))
