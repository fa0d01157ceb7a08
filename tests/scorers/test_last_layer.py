"""Scores of the last layer: closed forms, gradients, cut-offs, patterns; what cannot be fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import config, scorers, sharding
from ood_jax.scorers import percentile
from ood_jax.types import Features, LastLayer

MESH = sharding.make_mesh(1)
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 4)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
TRAIN = np.abs(RNG.normal(size=(90, 6))).astype(np.float32)
TEST = np.abs(RNG.normal(size=(25, 6))).astype(np.float32)
LABELS = RNG.integers(0, 4, 90).astype(np.int32)


def build(name, **settings):
    c = config.base("dino_negatives").score
    for key, value in settings.items():
        c[key] = value
    return scorers.build(name, c, MESH)


def train(rows=TRAIN, kernel=KERNEL, bias=BIAS, labels=LABELS):
    layer = LastLayer(kernel, bias, "features")
    return Features(rows, rows @ kernel + bias, labels=labels, last_layer=layer)


def scored(scorer, features, rows=TEST):
    return np.asarray(jax.jit(scorer.score)(scorer.fit(features), Features(rows)))


def test_gradnorm_is_the_gradient():
    def loss(kernel, row):
        return -jax.nn.log_softmax(row @ kernel + BIAS).sum()

    gradients = jax.vmap(jax.grad(loss), (None, 0))(KERNEL, TEST)
    expected = -jnp.abs(gradients).sum((1, 2))
    np.testing.assert_allclose(scored(build("gradnorm"), train()), expected, rtol=1e-5)


def test_react_without_a_cut_is_energy():
    scorer = build("react", react_percentile=99.999)
    low = TEST * 0.1
    found = scored(scorer, train(), low)
    expected = -jax.nn.logsumexp(low @ KERNEL + BIAS, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    state = scorer.fit(train())
    # What is beyond the threshold does not count.
    far = TEST + 100 * (scorer.facts(state)["threshold"] < TEST)
    np.testing.assert_allclose(scored(scorer, train(), far), scored(scorer, train()), rtol=1e-5)


def test_dice_keeps_the_share_that_is_asked_for():
    scorer = build("dice", dice_percentile=75.0)
    assert scorer.facts(scorer.fit(train())) == {"weights_kept": 0.25}
    contribution = TRAIN.mean(0)[:, None] * KERNEL
    kept = KERNEL * (contribution > np.quantile(contribution, 0.75))
    expected = -jax.nn.logsumexp(TEST @ kept + BIAS, axis=1)
    np.testing.assert_allclose(scored(scorer, train()), expected, rtol=1e-5)


def test_fdbd_is_the_distance_to_the_boundaries():
    logits = np.float64(TEST) @ KERNEL + BIAS
    expected = []
    for row, z in zip(logits, np.float64(TEST), strict=True):
        p = row.argmax()
        apart = np.linalg.norm(KERNEL.T - KERNEL[:, p], axis=1)
        far = [(row[p] - row[c]) / apart[c] for c in range(4) if c != p]
        expected.append(-sum(far) / np.linalg.norm(z - TRAIN.mean(0)))
    np.testing.assert_allclose(scored(build("fdbd"), train()), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["fdbd", "nci"])
def test_the_train_mean_and_twin_classes_are_finite(name):
    twins = KERNEL.copy()
    twins[:, 1] = twins[:, 0]
    rows = np.concatenate([TEST, TRAIN.mean(0, dtype=np.float64)[None].astype(np.float32)])
    assert np.isfinite(scored(build(name), train(kernel=twins), rows)).all()


def test_she_takes_only_what_is_predicted_rightly():
    predicted = (TRAIN @ KERNEL + BIAS).argmax(1)
    labels = np.where(np.arange(90) % 3 == 0, (predicted + 1) % 4, predicted).astype(np.int32)
    patterns = []
    for c in range(4):
        right = (predicted == c) & (labels == c)
        chosen = right if right.any() else labels == c
        patterns.append(TRAIN[chosen if chosen.any() else slice(None)].mean(0))
    pattern = np.stack(patterns)[(TEST @ KERNEL + BIAS).argmax(1)]
    scorer = build("she", she_metric="euclidean")
    found = scored(scorer, train(labels=labels))
    np.testing.assert_allclose(found, np.linalg.norm(TEST - pattern, axis=1), rtol=1e-4)
    never = sum(not ((predicted == c) & (labels == c)).any() for c in range(4))
    assert scorer.facts(scorer.fit(train(labels=labels)))["classes_never_right"] == never


def test_she_of_classes_that_are_never_right():
    scorer = build("she", she_metric="euclidean")
    bias = np.float32([50, 0, 0, 0])  # all are predicted as class 0
    labels = np.full(90, 1, np.int32)
    found = scored(scorer, train(bias=bias, labels=labels))
    np.testing.assert_allclose(found, np.linalg.norm(TEST - TRAIN.mean(0), axis=1), rtol=1e-4)
    assert scorer.facts(scorer.fit(train(bias=bias, labels=labels)))["classes_never_right"] == 4


def test_she_refuses_labels_without_a_logit():
    with pytest.raises(ValueError, match="label 7 of the train set, but 4 logits"):
        build("she").fit(train(labels=LABELS % 2 * 7))


def test_another_kernel():
    with pytest.raises(ValueError, match=r"features \[90, 6\] where the last layer's inputs are 5"):
        build("react").fit(train()._replace(last_layer=LastLayer(KERNEL[:5], BIAS, "features")))


@pytest.mark.parametrize("percent", [0.1, 33.3, 50.0, 90.0, 99.9])
@pytest.mark.parametrize("kind", ["both signs", "ReLU", "constant"])
@pytest.mark.parametrize("block", [64, 1 << 24])
def test_percentile_is_numpys(monkeypatch, percent, kind, block):
    monkeypatch.setattr(percentile, "BLOCK", block)
    rows = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    rows = {"both signs": rows * 1e3, "ReLU": np.maximum(rows, 0), "constant": rows * 0 - 2}[kind]
    found = percentile.percentile(rows, percent)
    np.testing.assert_allclose(found, np.percentile(np.float64(rows), percent), rtol=1e-6)


def test_percentile_of_one_number():
    assert percentile.percentile(np.float32([[-3.5]]), 40.0) == -3.5
