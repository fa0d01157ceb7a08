"""Exp-cosine and weighted kNN against brute force in float64; memory; inputs that make no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.neighbors import NearestNeighbors

from ood_jax import scorers
from ood_jax.scorers import cosine, knn
from ood_jax.types import Features, Scorer

CONFIG = ConfigDict({"feature": "features", "temperature": 0.04, "block": 16})


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cosines(test, bank):
    test, bank = np.float64(test), np.float64(bank)
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    return test @ (bank / np.linalg.norm(bank, axis=1, keepdims=True)).T


def log_mean_exp(similarity, temperature):
    top = similarity.max(1, keepdims=True)
    return np.log(np.exp((similarity - top) / temperature).mean(1)) + top[:, 0] / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.04, 0.0145, 0.0141, 0.001])
@pytest.mark.parametrize("block", [1, 10, 33, 1000])
def test_exp_cosine_is_the_brute_force(temperature, block):
    bank, test = features(33, 8), features(20, 8, seed=1)
    test[0] = -bank.sum(0)  # far from them all
    found = knn.exp_cosine(bank, test, temperature=temperature, block=block)
    expected = log_mean_exp(cosines(test, bank), temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.04, 0.001])
def test_opposite_vectors_do_not_underflow(temperature):
    bank = np.tile(np.float32([[1, 0]]), (1000, 1))
    test = np.float32([[-1, 0], [1, 0], [-1, 0.01]])
    found = knn.exp_cosine(bank, test, temperature=temperature, block=64)
    np.testing.assert_allclose(found[:2], [-1 / temperature, 1 / temperature], rtol=1e-4)
    assert found[0] < found[2] < found[1]


def test_many_test_blocks(monkeypatch):
    monkeypatch.setattr(cosine, "TEST_BLOCK", 8)
    monkeypatch.setattr(cosine, "TEST_UNIT", 8)
    bank, test = features(33, 8), features(27, 8, seed=1)
    found = knn.exp_cosine(bank, test, temperature=0.1, block=10)
    np.testing.assert_allclose(found, log_mean_exp(cosines(test, bank), 0.1), rtol=1e-5)
    found = knn.exp_cosine_leave_one_out(bank, temperature=0.1, block=10)
    np.testing.assert_allclose(found, left_out(bank, 0.1), rtol=1e-5)


def left_out(bank, temperature):
    similarity = cosines(bank, bank)
    others = ~np.eye(len(bank), dtype=bool)
    return log_mean_exp(similarity[others].reshape(len(bank), -1), temperature)


@pytest.mark.parametrize("temperature", [0.5, 0.04, 0.01])
def test_leave_one_out_is_the_brute_force(temperature):
    # Widely spread rows: with its own term (e^25 at .04) subtracted, float32 would leave noise.
    bank = features(40, 64)
    found = knn.exp_cosine_leave_one_out(bank, temperature=temperature, block=7)
    np.testing.assert_allclose(found, left_out(bank, temperature), rtol=1e-5, atol=1e-4)
    scorer = scorers.build("exp_cosine", CONFIG.copy_and_resolve_references())
    train = scorer.score_train(scorer.fit(Features(bank)))
    np.testing.assert_allclose(-train, left_out(bank, CONFIG.temperature), rtol=1e-5, atol=1e-4)


def test_zero_vectors_have_cosine_zero():
    bank = features(5, 4)
    bank[2] = 0
    test = np.zeros((1, 4), np.float32)
    np.testing.assert_allclose(
        knn.exp_cosine(bank, test, temperature=0.04, block=2), [0.0], atol=1e-5
    )
    assert np.isfinite(knn.exp_cosine(bank, bank, temperature=0.04, block=2)).all()


def temp_bytes(bank, test, compiled):
    shapes = [jax.ShapeDtypeStruct((n, 16), jnp.float32) for n in (bank, test)]
    return compiled(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("which", ["log_sum_exp", "top"])
def test_memory_is_bounded_by_the_blocks(which):
    def lower(bank, test):
        if which == "top":
            return knn._top.lower(bank, test, neighbours=20, block=512)
        return knn._log_sum_exp.lower(bank, test, None, temperature=0.04, block=512)

    small = temp_bytes(2_000, 256, lower)
    large = temp_bytes(1_000_000, 256, lower)
    assert large <= small
    assert large < 256 * 1_000_000  # no byte for each pair
    rows = [rows.shape[0] for rows, _ in cosine.row_blocks(jnp.zeros((5000, 2)))]
    assert max(rows) == cosine.TEST_BLOCK and sum(rows) >= 5000


@pytest.mark.parametrize("block", [3, 64, 500])
def test_nearest_is_scikit_learns(block):
    bank, test = features(200, 8), features(50, 8, seed=1)
    found, rows = knn.nearest(bank, test, neighbours=10, block=block)
    distance, expected = (
        NearestNeighbors(n_neighbors=10, metric="cosine").fit(bank).kneighbors(test)
    )
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(found, 1 - distance, atol=1e-6)


def test_unlabelled_images_neither_vote_nor_count():
    bank, labels = np.float32([[1, 0], [0, 1], [1, 0.01]]), np.array([0, 1, -1])
    test, test_labels = np.float32([[1, 0.01], [0, 1], [1, 1]]), np.array([0, 1, -1])
    accuracy = knn.knn_accuracy(
        bank, labels, test, test_labels, neighbours=1, temperature=0.07, block=2
    )
    assert accuracy == 1.0
    with pytest.raises(ValueError, match="labelled images"):
        knn.knn_accuracy(bank, labels, test, -np.ones(3), neighbours=1, temperature=0.07)


def test_a_class_the_bank_lacks_is_a_miss():
    bank, test = np.float32([[1, 0]]), np.float32([[1, 0]])
    assert knn.knn_accuracy(bank, [0], test, [5], neighbours=1, temperature=0.07) == 0.0


@pytest.mark.parametrize(
    ("bank", "test", "message"),
    [
        (features(3, 4), features(2, 5), "5 wide, the bank's 4"),
        (features(0, 4), features(2, 4), r"bank features of shape \[0, 4\]"),
        (features(3, 4), features(0, 4), r"test features of shape \[0, 4\]"),
        (features(3, 4), features(4), r"shape \[4\]"),
        (features(3, 4) * np.nan, features(2, 4), "3 of 3 bank features are not finite"),
        (features(3, 4), np.float32([[0, 0, 0, 0], [0, np.inf, 0, 0]]), "1 of 2 .* first in row 1"),
    ],
)
def test_features_that_cannot_be_compared(bank, test, message):
    with pytest.raises(ValueError, match=message):
        knn.exp_cosine(bank, test, temperature=0.04, block=2)
    scorer = scorers.build("exp_cosine", CONFIG)
    with pytest.raises(ValueError, match=message):
        scorer.score(scorer.fit(Features(bank)), Features(test))


def test_numbers_that_make_no_sense():
    rows = features(3, 4)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="use a number above 0"):
            knn.exp_cosine(rows, rows, temperature=temperature, block=2)
    with pytest.raises(ValueError, match="block = 0: use"):
        knn.exp_cosine(rows, rows, temperature=1.0, block=0)
    with pytest.raises(ValueError, match="the bank has 3 images; use 1 to 3"):
        knn.nearest(rows, rows, neighbours=4, block=2)
    with pytest.raises(ValueError, match="two bank rows"):
        knn.exp_cosine_leave_one_out(rows[:1], temperature=1.0, block=2)
    with pytest.raises(ValueError, match="from 0 to 3: give one of 0 to 2"):
        knn.weighted_knn_log_votes(rows, [0, 1, 3], rows, classes=3, neighbours=1, temperature=1.0)


def test_scorer_reads_the_field_that_the_config_names():
    config = ConfigDict({**CONFIG, "feature": "projections"})
    train = Features(features(9, 4), projections=features(9, 3, seed=1))
    scorer = scorers.build("exp_cosine", config)
    expected = -knn.exp_cosine(train.projections, train.projections, temperature=0.04, block=16)
    np.testing.assert_array_equal(scorer.score(scorer.fit(train), train), expected)
    assert scorers.fields("exp_cosine", config) == ("projections",)
    with pytest.raises(ValueError, match="'projections': this network has features"):
        scorer.fit(Features(features(9, 4)))
    with pytest.raises(ValueError, match="'labels'"):
        scorers.build("exp_cosine", ConfigDict({**CONFIG, "feature": "labels"})).fit(train)


USER_SCORER = """
from ood_jax.types import Scorer
FIELDS = ("features", "logits")

def norm(config):
    return Scorer(lambda train: {}, lambda state, x: -(x.features ** 2).sum(1))

build = norm
"""


@pytest.mark.parametrize("name", ["my_scores.norms", "my_scores.norms:norm"])
def test_a_users_own_scorer(name, tmp_path, monkeypatch):
    (tmp_path / "my_scores").mkdir()
    (tmp_path / "my_scores/norms.py").write_text(USER_SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    scorer = scorers.build(name, CONFIG)
    assert isinstance(scorer, Scorer)
    np.testing.assert_array_equal(scorer.score({}, Features(np.float32([[3, 4]]))), [-25])
    assert scorers.fields(name, CONFIG) == ("features", "logits")
    with pytest.raises(ValueError, match="no function other"):
        scorers.build("my_scores.norms:other", CONFIG)


@pytest.mark.parametrize("name", ["exp_cosin", "", "no_such.module", "no_such:build"])
def test_unknown_scorers(name):
    with pytest.raises(ValueError, match="is none of exp_cosine, nor an import path"):
        scorers.build(name, CONFIG)
