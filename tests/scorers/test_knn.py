"""Exp-cosine, KNN and weighted kNN against brute force in float64; inputs that make no sense."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ood_jax import config, scorers, sharding
from ood_jax.scorers import knn
from ood_jax.types import Features, Scorer

MESH = sharding.make_mesh(2)


def settings(**changed):
    found = config.base("dino_negatives").score
    with found.unlocked():
        found.update({"block": 16, "neighbour": 3} | changed)
    return found


def build(name, mesh=MESH, **changed):
    return scorers.build(name, settings(**changed), mesh)


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
    found = knn.log_mean_exp_cosine(bank, test, temperature=temperature, block=block)
    expected = log_mean_exp(cosines(test, bank), temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.04, 0.001])
def test_opposite_vectors_do_not_underflow(temperature):
    bank = np.tile(np.float32([[1, 0]]), (1000, 1))
    test = np.float32([[-1, 0], [1, 0], [-1, 0.01]])
    found = knn.log_mean_exp_cosine(bank, test, temperature=temperature, block=64)
    np.testing.assert_allclose(found[:2], [-1 / temperature, 1 / temperature], rtol=1e-4)
    assert found[0] < found[2] < found[1]


def left_out(bank, temperature):
    similarity = cosines(bank, bank)
    others = ~np.eye(len(bank), dtype=bool)
    return log_mean_exp(similarity[others].reshape(len(bank), -1), temperature)


@pytest.mark.parametrize("temperature", [0.5, 0.04, 0.01])
def test_leave_one_out_is_the_brute_force(temperature):
    # Widely spread rows: with its own term (e^25 at .04) subtracted, float32 would leave noise.
    bank = features(40, 64)
    found = knn.log_mean_exp_cosine_leave_one_out(bank, temperature=temperature, block=7)
    np.testing.assert_allclose(found, left_out(bank, temperature), rtol=1e-5, atol=1e-4)
    scorer = build("exp_cosine", temperature=temperature)
    train = scorer.score_train(scorer.fit(Features(bank)))
    np.testing.assert_allclose(-train, left_out(bank, temperature), rtol=1e-5, atol=1e-4)


def kth_distance(similarity, k):
    return 2 - 2 * -np.sort(-similarity, 1)[:, k - 1]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_knn_is_the_brute_force(approximate, devices):
    bank, test = features(50, 8), features(20, 8, seed=1)
    scorer = build("knn", sharding.make_mesh(devices), approximate=approximate)
    state = scorer.fit(Features(bank))
    for found in (scorer.streamed, jax.jit(scorer.score)):
        found = np.asarray(found(state, Features(test)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, kth_distance(cosines(test, bank), 3), atol=2e-6)
    similarity = cosines(bank, bank)
    np.fill_diagonal(similarity, -np.inf)
    np.testing.assert_allclose(scorer.score_train(state), kth_distance(similarity, 3), atol=2e-6)


def test_knn_orders_as_scikit_learns_distance():
    bank, test = features(50, 8), features(20, 8, seed=1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, test)]
    distance, _ = NearestNeighbors(n_neighbors=3).fit(unit[0]).kneighbors(unit[1])
    scorer = build("knn")
    found = scorer.streamed(scorer.fit(Features(bank)), Features(test))
    np.testing.assert_allclose(np.sqrt(found), distance[:, -1], atol=2e-6)


def test_more_neighbours_than_the_bank_has():
    scorer = build("knn", neighbour=4)
    with pytest.raises(ValueError, match=r"score.neighbour = 4: the bank has 3 images; use 1 to 3"):
        scorer.fit(Features(features(3, 4)))
    state = scorer.fit(Features(features(4, 4)))
    with pytest.raises(ValueError, match=r"score.neighbour = 4: the bank has 3 images"):
        scorer.score_train(state)
    with pytest.raises(ValueError, match=r"score.neighbour = 0: use 1 or more"):
        build("knn", neighbour=0)


def test_zero_vectors_have_cosine_zero():
    bank = features(5, 4)
    bank[2] = 0
    test = np.zeros((1, 4), np.float32)
    np.testing.assert_allclose(
        knn.log_mean_exp_cosine(bank, test, temperature=0.04, block=2), [0.0], atol=1e-5
    )
    assert np.isfinite(knn.log_mean_exp_cosine(bank, bank, temperature=0.04, block=2)).all()


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
        knn.log_mean_exp_cosine(bank, test, temperature=0.04, block=2)
    for name in ("exp_cosine", "knn"):
        scorer = build(name)
        with pytest.raises(ValueError, match=message):
            scorer.streamed(scorer.fit(Features(bank)), Features(test))


def test_numbers_that_make_no_sense():
    rows = features(3, 4)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="use a number above 0"):
            knn.log_mean_exp_cosine(rows, rows, temperature=temperature, block=2)
    with pytest.raises(ValueError, match="block = 0: use"):
        knn.log_mean_exp_cosine(rows, rows, temperature=1.0, block=0)
    with pytest.raises(ValueError, match="the bank has 3 images; use 1 to 3"):
        knn.nearest(rows, rows, neighbours=4, block=2)
    with pytest.raises(ValueError, match="two bank rows"):
        knn.log_mean_exp_cosine_leave_one_out(rows[:1], temperature=1.0, block=2)
    with pytest.raises(ValueError, match="from 0 to 3: give one of 0 to 2"):
        knn.weighted_knn_log_votes(rows, [0, 1, 3], rows, classes=3, neighbours=1, temperature=1.0)


@pytest.mark.parametrize("name", ["exp_cosine", "knn"])
def test_scorer_reads_the_field_that_the_config_names(name):
    train = Features(features(9, 4), projections=features(9, 3, seed=1))
    scorer, other = build(name, feature="projections"), build(name)
    assert scorer.needs == ("projections",)
    found = scorer.streamed(scorer.fit(train), train)
    plain = Features(train.projections)
    np.testing.assert_array_equal(found, other.streamed(other.fit(plain), plain))
    with pytest.raises(ValueError, match="'projections': this network has features"):
        scorer.fit(Features(features(9, 4)))


USER_SCORER = """
from ood_jax.types import Scorer

def norm(config, mesh):
    return Scorer(lambda train: {}, lambda state, x: -(x.features ** 2).sum(1))

build = norm
"""


@pytest.mark.parametrize("name", ["my_scores.norms", "my_scores.norms:norm"])
def test_a_users_own_scorer(name, tmp_path, monkeypatch):
    (tmp_path / "my_scores").mkdir()
    (tmp_path / "my_scores/norms.py").write_text(USER_SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    scorer = build(name)
    assert isinstance(scorer, Scorer)
    np.testing.assert_array_equal(scorer.score({}, Features(np.float32([[3, 4]]))), [-25])
    with pytest.raises(ValueError, match="no function other"):
        build("my_scores.norms:other")


@pytest.mark.parametrize("name", ["exp_cosin", "", "no_such.module", "no_such:build"])
def test_unknown_scorers(name):
    with pytest.raises(ValueError, match=r"no scorer '.*exp_cosine, knn.* any import path"):
        build(name)
