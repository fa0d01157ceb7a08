"""Batches of vectors: the right rows beside each image, the same for every process and start."""

import itertools

import numpy as np
import pytest
from small_run import write_images

from ood_jax.data.pipeline import train_batches
from ood_jax.data.sources import open_source
from ood_jax.data.vectors import numbered_batches, with_vectors
from ood_jax.types import Vectors

N, BATCH = 12, 4
VECTORS = Vectors(
    embeddings=np.arange(N)[:, None] * np.ones(3, np.float32),
    teacher_logits=-np.arange(N)[:, None] * np.ones(2, np.float32),
    known=np.ones(N, bool),
    near=100.0 + np.arange(7)[:, None] * np.ones(5, np.float32),
    far=200.0 + np.arange(7)[:, None] * np.ones(6, np.float32),
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    labels = np.arange(N) % 3
    folder = tmp_path_factory.mktemp("images")
    return open_source(write_images(folder, "train", N, labels=labels))


def taken(train, steps, vectors=VECTORS, **options):
    own = {"batch": BATCH, "seed": 5, **options}
    batches = with_vectors(train_batches(train, size=16, **own), vectors, **own)
    return list(itertools.islice(batches, steps))


def test_rows_are_those_of_the_images(train):
    for host in taken(train, 4):
        np.testing.assert_array_equal(host["embedding"], VECTORS.embeddings[host["index"]])
        np.testing.assert_array_equal(host["teacher_logits"], VECTORS.teacher_logits[host["index"]])
        assert host["near"].shape == (BATCH, 5) and host["far"].shape == (BATCH, 6)


def test_each_outlier_comes_once_an_epoch_and_kinds_apart(train):
    hosts = taken(train, 7)  # 28 = 4 epochs of 7
    near = np.concatenate([host["near"][:, 0] for host in hosts]).reshape(4, 7) - 100
    far = np.concatenate([host["far"][:, 0] for host in hosts]).reshape(4, 7) - 200
    for order in (*near, *far):
        assert sorted(order) == list(range(7))
    assert not np.array_equal(near[0], near[1]) and not np.array_equal(near, far)


def test_it_goes_on_where_it_stopped(train):
    whole, rest = taken(train, 6), taken(train, 2, start_step=4)
    for a, b in zip(whole[4:], rest, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_two_processes_have_the_parts_of_one(train):
    halves = [taken(train, 3, process_index=p, process_count=2) for p in (0, 1)]
    for one, first, second in zip(taken(train, 3), *halves, strict=True):
        for name in ("embedding", "teacher_logits", "near", "far", "index"):
            np.testing.assert_array_equal(one[name], np.concatenate([first[name], second[name]]))


def test_without_vectors_batches_are_what_they_were(train):
    plain = list(itertools.islice(train_batches(train, size=16, batch=BATCH, seed=5), 2))
    for a, b in zip(plain, taken(train, 2, Vectors()), strict=True):
        assert a.keys() == b.keys()


@pytest.mark.parametrize("balanced", [False, True])
def test_numbers_come_in_the_order_of_images(train, balanced):
    own = {"batch": BATCH, "seed": 5, "start_step": 2, "balanced": balanced}
    with_images = train_batches(train, size=16, **own)
    without = numbered_batches(train, np.ones(N, bool), **own)
    for a, b in itertools.islice(zip(with_images, without, strict=False), 5):
        assert set(b) == {"index", "label", "skipped"} and b["skipped"] == 0
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_a_row_that_is_not_known_is_replaced_and_counted(train):
    known = np.ones(N, bool)
    known[[3, 4]] = False
    hosts = list(itertools.islice(numbered_batches(train, known, batch=N, seed=0), 2))
    for host in hosts:
        assert sorted(host["index"]) == sorted([*set(range(N)) - {3, 4}, 5, 5])
        assert host["skipped"] == 2
