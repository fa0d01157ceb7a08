"""Class-balanced batches: how often, i.i.d., the same for every feed, process count and resume."""

import itertools
from typing import Any

import numpy as np
import pytest
from feeds import assert_processes_feed_the_same
from PIL import Image

from ood_jax.data.order import Balanced, Order, balanced_order, check_balanced
from ood_jax.data.pipeline import train_batches
from ood_jax.data.source import Source, from_array
from ood_jax.data.sources import open_source

LABELS = np.repeat([0, 2, 5], [60, 6, 2])[np.random.default_rng(0).permutation(68)]
OPTIONS: dict[str, Any] = {"batch": 24, "size": 4, "seed": 3, "balanced": True}


def _source(labels=LABELS) -> Source:
    """Images whose pixels are their numbers."""
    n = len(labels)
    array = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 3))
    return from_array("numbers", array.copy(), labels)


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def _same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_classes_and_images_of_a_class_are_equally_frequent():
    order = balanced_order(LABELS, 512, 7, 0, 512)
    rows = np.concatenate([order.rows(step) for step in range(40)])
    counts = np.bincount(rows, minlength=len(LABELS))
    for label in (0, 2, 5):
        own = counts[label == LABELS]
        total, each = len(rows) / 3, len(rows) / 3 / len(own)
        assert abs(own.sum() - total) < 4 * np.sqrt(total)
        assert np.abs(own - each).max() < 5 * np.sqrt(each)


def test_a_class_is_drawn_for_each_slot_not_dealt_out():
    """Counts of a class in a batch are binomial, and neighbouring slots know nothing of each other.

    Dealt out in turn, the counts would not vary and neighbours would differ.
    """
    order = balanced_order(LABELS, 60, 1, 0, 60)
    labels = np.stack([LABELS[order.rows(step)] for step in range(600)])
    variance = (labels == 2).sum(1).var()
    assert 0.8 < variance / (60 * 1 / 3 * 2 / 3) < 1.25
    assert abs((labels[:, 1:] == labels[:, :-1]).mean() - 1 / 3) < 0.01


def test_seeds_and_steps_differ_and_nothing_else_does():
    orders = [balanced_order(LABELS, 24, seed, 0, 24) for seed in (0, 1, 0)]
    first, other, again = (order.rows(4) for order in orders)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, orders[0].rows(5))


def test_the_item_order_is_the_batch_order():
    order = balanced_order(LABELS, 24, 3, 8, 8)
    items = [order.item(k) for k in range(80)]
    assert items == np.concatenate([order.rows(s) for s in range(10)]).tolist()


@pytest.mark.parametrize("memory", [2**30, 0])
def test_processes_resume_and_labels(memory):
    options = OPTIONS | {"size": 3, "memory": memory}
    whole = _take(train_batches(_source(), _source(), **options), 6)
    for batch in whole:
        assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
        assert batch["label"].tolist() == LABELS[batch["index"]].tolist()
    parts = [
        train_batches(_source(), _source(), start_step=2, process_index=p, process_count=2,
                      **options)
        for p in range(2)
    ]  # fmt: skip
    for expected in whole[2:]:
        rows = [next(part) for part in parts]
        joined = {k: np.concatenate([r[k] for r in rows]) for k in expected if k != "skipped"}
        _same(joined | {"skipped": 0}, expected)


def test_both_feeds_agree_and_the_auxiliary_stream_stays_as_it_is():
    feeds = [
        train_batches(_source(), _source(), **OPTIONS | {"size": 3, "memory": m})
        for m in (2**30, 0)
    ]
    plain = train_batches(_source(), _source(), **OPTIONS | {"balanced": False})
    for _ in range(4):
        gathered, streamed, shuffled = (next(feed) for feed in (*feeds, plain))
        _same(gathered, streamed)
        np.testing.assert_array_equal(gathered["auxiliary_index"], shuffled["auxiliary_index"])
        assert gathered["index"].tolist() != shuffled["index"].tolist()


@pytest.fixture
def damaged(tmp_path):
    """Classes a (0, 1, 2), b (3, 4, 5), c (6); of them 1, 3, 5 and 6 cannot be read."""
    for k in range(7):
        path = tmp_path / "images" / "aaabbbc"[k] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * k,) * 3).save(path)
        if k in (1, 3, 5, 6):
            path.write_bytes(path.read_bytes()[:40])
    return open_source(f"folder:{tmp_path}/images")


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_corrupt_image_is_replaced_by_one_of_its_class(damaged, memory):
    instead = {1: 2, 3: 4, 5: 4, 6: 0}  # 6 is the last of its class, so any will do
    order = balanced_order(damaged.labels, 40, 1, 0, 40)
    feed = train_batches(damaged, batch=40, size=8, seed=1, memory=memory, balanced=True)
    for step in range(3):
        batch, asked = next(feed), order.rows(step).tolist()
        assert batch["index"].tolist() == [instead.get(i, i) for i in asked]
        assert batch["image"][:, 0, 0, 0].tolist() == [20 * instead.get(i, i) for i in asked]
        assert batch["label"].tolist() == damaged.labels[batch["index"]].tolist()
        assert batch["skipped"] == sum(i in instead for i in asked) > 0


@pytest.mark.parametrize("kind", [Order, Balanced])
def test_stand_ins_are_the_same_one_by_one_and_all_at_once(kind):
    rng = np.random.default_rng(5)
    for _ in range(20):
        labels = rng.integers(4, size=30)
        good = rng.random(30) < 0.3
        good[rng.integers(30)] = True
        order = Order(30, 6, 0, 0, 0, 6) if kind is Order else balanced_order(labels, 6, 0, 0, 6)
        slowly = [next(j for j in order.instead(i) if good[j]) for i in range(30)]
        assert order.readable(good).tolist() == slowly
        assert {*order.instead(7)} == {*range(30)}


def test_worker_processes_feed_the_same_batches(damaged, tmp_path):
    pytest.importorskip("grain")
    assert_processes_feed_the_same(
        tmp_path / "feed.py", tmp_path / "images", "batch=8, balanced=True"
    )


def test_what_cannot_be_balanced():
    check_balanced(np.array([2, 0, 1, 0]), 3)
    for labels, classes, message in (
        (LABELS, 6, "no image of class 1, 3, 4 .of 6.; use"),
        (LABELS, 40, r"class 1, 3, 4, 6, 7 and 32 more .of 40."),
        (LABELS, 4, "labels up to 5, and there are 4 classes"),
        (None, 3, "has no labels"),
        (np.array([0, -1, 1]), 2, "1 of 3 images without labels"),
    ):
        with pytest.raises(ValueError, match=message):
            check_balanced(labels, classes)
    with pytest.raises(ValueError, match=r"data\.balanced: data\.train has no labels"):
        train_batches(open_source("noise:uniform/20"), **OPTIONS)
