"""Mining: what is kept lies farthest, of its class, whatever devices and memory; errors."""

import jax
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.mine import Mined, Settings, mine

CLASSES, EACH, WIDTH = 2, 20, 6
SMALL = Settings(
    neighbour=4, points=3, picked=3, sigma=0.3, draws=40, keep=2, rounds=3, memory=1 << 20
)


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    labels = np.arange(CLASSES * EACH) % CLASSES
    centres = 3 * rng.normal(size=(CLASSES, WIDTH))
    rows = centres[labels] + rng.normal(size=(len(labels), WIDTH))
    return rows.astype(np.float32), labels


@pytest.fixture(scope="module")
def mined(embeddings):
    return mine(*embeddings, settings=SMALL, key=jax.random.key(0))


def units(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_shapes_and_order(embeddings, mined):
    count = SMALL.rounds * SMALL.points * SMALL.keep
    assert mined.outliers.shape == (CLASSES * count, WIDTH)
    assert [x.dtype for x in mined] == [np.float32, np.int32, np.float32, np.int32]
    np.testing.assert_allclose(np.linalg.norm(mined.outliers, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(mined.labels, np.repeat([0, 1], count))
    np.testing.assert_array_equal(embeddings[1][mined.source], mined.labels)
    by_point = mined.source.reshape(CLASSES, SMALL.rounds, SMALL.points, SMALL.keep)
    assert np.all(by_point == by_point[:, :1, :, :1])
    kept = mined.distances.reshape(-1, SMALL.keep)
    assert np.all(kept[:, 0] >= kept[:, 1])  # the farthest first


def test_sources_are_the_boundary_and_distances_are_the_class_banks(embeddings, mined):
    rows, labels = units(embeddings[0]), embeddings[1]
    for label in range(CLASSES):
        bank = rows[labels == label].astype(np.float64)
        squares = np.sort(((bank[:, None] - bank[None]) ** 2).sum(-1), 1)[:, SMALL.neighbour - 1]
        wanted = np.flatnonzero(labels == label)[np.argsort(-squares)[: SMALL.points]]
        some = mined.labels == label
        assert set(mined.source[some]) == set(wanted)
        squares = ((mined.outliers[some][:, None] - bank[None]) ** 2).sum(-1)
        found = np.sort(squares, 1)[:, SMALL.neighbour - 1]
        np.testing.assert_allclose(mined.distances[some], found, atol=1e-5)


@pytest.fixture(scope="module")
def official(embeddings):
    return mine(*embeddings, settings=SMALL._replace(selection="official"), key=jax.random.key(0))


def test_the_farthest_of_many_lie_farther_than_the_only_one(embeddings, mined, official):
    any_one = SMALL._replace(draws=1, keep=1, rounds=60)
    low, high = np.quantile(
        mine(*embeddings, settings=any_one, key=jax.random.key(0)).distances, [0.5, 0.9]
    )
    assert np.median(mined.distances) > high > low
    assert official.outliers.shape == mined.outliers.shape
    assert np.median(official.distances) < high  # in effect random


def test_devices_and_memory_change_nothing(embeddings, mined, official):
    little = SMALL._replace(memory=4 * 24 * 7)  # 7 draws at once
    others = (
        (mined, SMALL, sharding.make_mesh(2)),
        (mined, little, None),
        (official, little._replace(selection="official"), None),
    )
    for whole, settings, mesh in others:
        found = mine(*embeddings, settings=settings, key=jax.random.key(0), mesh=mesh)
        np.testing.assert_array_equal(found.source, whole.source)
        np.testing.assert_allclose(found.outliers, whole.outliers, atol=1e-6)


def test_keys_and_scale(embeddings, mined):
    rows, labels = embeddings
    other = mine(rows, labels, settings=SMALL, key=jax.random.key(7))
    assert np.abs(other.outliers - mined.outliers).max() > 1e-2
    assert np.abs(mined.outliers[:6] - mined.outliers[6:12]).max() > 1e-2  # rounds differ
    scaled = mine(4 * rows, labels, settings=SMALL, key=jax.random.key(0))
    np.testing.assert_allclose(scaled.outliers, mined.outliers, atol=1e-5)


def test_all_classes_at_once_and_unlabelled_rows(embeddings):
    rows, labels = embeddings
    found = mine(rows, None, settings=SMALL._replace(class_wise=False), key=jax.random.key(0))
    assert isinstance(found, Mined) and np.all(found.labels == -1)
    assert len(found.outliers) == SMALL.rounds * SMALL.points * SMALL.keep
    partly = np.where(labels == 1, -1, labels)
    some = mine(rows, partly, settings=SMALL, key=jax.random.key(0))
    assert np.all(some.labels == 0) and np.all(labels[some.source] == 0)


def test_fewer_points_are_drawn_anew_each_round(embeddings):
    settings = SMALL._replace(points=10, picked=2, rounds=8, keep=1)
    found = mine(*embeddings, settings=settings, key=jax.random.key(0))
    rounds = found.source.reshape(CLASSES, 8, 2)
    assert np.all(rounds[..., 0] != rounds[..., 1])  # without replacement
    assert all(len({tuple(r) for r in one}) > 2 for one in rounds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbour": 0}, "method.neighbour = 0: use 1 or more"),
        ({"picked": 4}, "method.picked = 4 of method.points = 3"),
        ({"sigma": 0.0}, "method.sigma = 0.0: use a number above 0"),
        ({"sigma": float("nan")}, "method.sigma = nan"),
        ({"keep": 41}, "method.keep = 41 of method.draws = 40"),
        ({"selection": "intended"}, "method.selection 'intended': use paper or official"),
        ({"neighbour": 21}, r"method.neighbour = 21 of a bank of 20 embeddings \(class 0\)"),
        ({"points": 21}, r"method.points = 21 of a bank of 20 embeddings \(class 0\)"),
        ({"neighbour": 41, "class_wise": False}, r"a bank of 40 embeddings \(the set\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(embeddings, change, message):
    with pytest.raises(ValueError, match=message):
        mine(*embeddings, settings=SMALL._replace(**change), key=jax.random.key(0))


def test_embeddings_that_make_no_sense_are_refused(embeddings):
    rows, labels = embeddings

    def refused(rows, labels, message, **change):
        with pytest.raises(ValueError, match=message):
            mine(rows, labels, settings=SMALL._replace(**change), key=jax.random.key(0))

    zero, broken = rows.copy(), rows.copy()
    zero[3], broken[5, 1] = 0, np.nan
    same = np.where(labels[:, None] == 1, np.float32(2), rows)
    refused(zero, labels, "1 of 40 embeddings have norm 0, the first in row 3")
    refused(broken, labels, "1 of 40 embedding features are not finite, the first in row 5")
    refused(same, labels, r"all 20 embeddings of class 1 are the same \(zero variance\)")
    refused(np.ones_like(rows), None, "all 40 embeddings of the set are the same", class_wise=False)
    refused(rows[0], labels, r"embedding features of shape \[6\]")
    refused(rows, None, "mining class by class needs labels")
    refused(rows, np.full(len(rows), -1), "mining class by class needs labels")
    refused(rows, labels[:7], r"labels \[7\] for 40 features")
