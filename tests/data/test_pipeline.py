"""Batches: order, resume, processes, corrupt images, memory; the same through every path."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from feeds import assert_processes_feed_the_same
from PIL import Image

from ood_jax.data.decode import fit
from ood_jax.data.order import Order, epoch_order, global_indices
from ood_jax.data.pipeline import decoded, eval_batches, fits, train_batches
from ood_jax.data.source import Source, from_array
from ood_jax.data.sources import open_source


def _numbered(n: int, spec: str = "numbers") -> Source:
    """n images 4 x 4 whose pixels are their numbers, labelled with number % 7."""
    array = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 3)).copy()
    return from_array(spec, array, np.arange(n) % 7)


@pytest.fixture
def damaged(tmp_path):
    """Ten PNGs whose pixels are 20 x their numbers; 3, 4 and 9 cannot be read."""
    for k in range(10):
        path = tmp_path / f"{k}.png"
        Image.new("RGB", (8, 8), (20 * k,) * 3).save(path)
        if k in (3, 4, 9):
            path.write_bytes(path.read_bytes()[:40])
    return open_source(f"folder:{tmp_path}")


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def _same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype


OPTIONS = {"batch": 12, "size": 4, "seed": 5}


def test_keys_types_and_content():
    batch = next(train_batches(_numbered(50), _numbered(30), **OPTIONS))
    kinds = {k: (v.dtype, v.shape) for k, v in batch.items() if k != "skipped"}
    rows, images = (np.int32, (12,)), (np.uint8, (12, 4, 4, 3))
    assert kinds == {
        "image": images, "index": rows, "label": rows, "auxiliary": images, "auxiliary_index": rows
    }  # fmt: skip
    assert type(batch["skipped"]) is int and batch["skipped"] == 0
    assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
    assert batch["auxiliary"][:, 3, 3, 2].tolist() == batch["auxiliary_index"].tolist()
    assert batch["label"].tolist() == (batch["index"] % 7).tolist()
    unlabelled = next(train_batches(open_source("noise:uniform/20"), **OPTIONS))
    assert set(unlabelled["label"]) == {-1} and "auxiliary" not in unlabelled


@pytest.mark.parametrize(("n", "batch"), [(50, 12), (7, 12), (12, 12), (5, 64)])
def test_every_epoch_shows_every_image_once_in_a_new_order(n, batch):
    steps = 4 * n // batch + 2
    stream = np.concatenate([global_indices(n, batch, 3, s) for s in range(steps)])
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert len(epochs) >= 4
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert len({e.tobytes() for e in epochs[:4]}) == 4


def test_seeds_and_streams_have_their_own_order():
    orders = [epoch_order(40, seed, 0, stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({o.tobytes() for o in orders}) == 4
    batch = next(train_batches(_numbered(50), _numbered(50), **OPTIONS))
    assert batch["index"].tolist() != batch["auxiliary_index"].tolist()


@pytest.mark.parametrize("auxiliary", [9, 30, 200])
def test_the_auxiliary_set_reshuffles_at_its_own_pace(auxiliary):
    steps = 3 * auxiliary // 12 + 1
    batches = _take(train_batches(_numbered(50), _numbered(auxiliary), **OPTIONS), steps)
    stream = np.concatenate([b["auxiliary_index"] for b in batches])
    first, second = stream[:auxiliary], stream[auxiliary : 2 * auxiliary]
    assert sorted(first) == sorted(second) == list(range(auxiliary))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("memory", [2**30, 0])
def test_resuming_at_any_step_equals_the_uninterrupted_run(memory):
    source, other = _numbered(50), _numbered(30)
    options = OPTIONS | {"size": 3, "memory": memory}
    whole = _take(train_batches(source, other, **options), 9)
    for step in (1, 4, 5, 8):
        resumed = train_batches(source, other, start_step=step, **options)
        for expected in whole[step:]:
            _same(next(resumed), expected)


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_feed_the_same_global_batch(processes, memory):
    def feed(p, count):
        return train_batches(
            _numbered(50), _numbered(30), process_index=p, process_count=count, start_step=2,
            memory=memory, **OPTIONS | {"size": 3},
        )  # fmt: skip

    parts = [feed(p, processes) for p in range(processes)]
    for expected in _take(feed(0, 1), 6):
        rows = [next(part) for part in parts]
        joined = {k: np.concatenate([r[k] for r in rows]) for k in expected if k != "skipped"}
        _same(joined | {"skipped": sum(r["skipped"] for r in rows)}, expected)


def test_the_item_order_is_the_batch_order():
    order = Order(n=50, batch=12, seed=5, stream=1, start=4, length=4)
    items = [order.item(k) for k in range(80)]
    assert items == np.concatenate([order.rows(s) for s in range(20)]).tolist()


@pytest.mark.parametrize("memory", [2**30, 0])
def test_corrupt_images_are_replaced_by_the_next_good_one_and_counted(damaged, memory):
    instead = {3: 5, 4: 5, 9: 0}
    feed = train_batches(damaged, batch=10, size=8, seed=1, memory=memory)
    for step in range(3):
        asked = global_indices(10, 10, 1, step)
        batch = next(feed)
        assert batch["index"].tolist() == [instead.get(i, i) for i in asked]
        assert batch["image"][:, 0, 0, 0].tolist() == [20 * instead.get(i, i) for i in asked]
        assert batch["skipped"] == 3


@pytest.mark.parametrize("memory", [2**30, 0])
def test_corrupt_images_are_not_valid_in_evaluation(damaged, memory):
    batches = list(eval_batches(damaged, batch=4, size=8, memory=memory))
    valid = np.concatenate([b["valid"] for b in batches])
    assert valid.tolist() == [k not in (3, 4, 9) for k in range(10)] + [False, False]
    assert batches[0]["image"][3].max() == 0


def test_a_last_batch_is_filled_up_without_decoding_again():
    asked = []
    source = _numbered(5)
    read = dataclasses.replace(source, array=None, read=lambda i: asked.append(i) or source.read(i))
    batches = list(eval_batches(read, batch=4, size=3, memory=0))
    assert batches[1]["index"].tolist() == [4, 4, 4, 4]
    assert sorted(asked) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_set_of_corrupt_images_only(tmp_path, memory):
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(b"nothing")
    source = open_source(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="none of the 3 images"):
        next(train_batches(source, batch=2, size=8, seed=0, memory=memory))
    with pytest.raises(ValueError, match="none of the 3 images"):
        list(eval_batches(source, batch=2, size=8, memory=memory))


def test_a_disk_that_fails_is_not_taken_for_corrupt_images(damaged, tmp_path):
    (tmp_path / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"7\.png"):
        next(train_batches(damaged, batch=10, size=8, seed=1))


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_image_once_in_order(processes, memory):
    source = _numbered(50)
    parts = [
        list(eval_batches(source, batch=8, size=3, process_index=p, process_count=processes,
                          memory=memory))
        for p in range(processes)
    ]  # fmt: skip
    assert [len(p) for p in parts] == [7] * processes
    rows = [r for step in zip(*parts, strict=True) for r in step]
    joined = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    assert joined["index"].tolist() == [*range(50), *[49] * 6]
    assert joined["valid"].tolist() == [True] * 50 + [False] * 6
    assert joined["image"][:, 0, 0, 0].tolist() == joined["index"].tolist()
    assert joined["index"].dtype == np.int32 and joined["image"].shape == (56, 3, 3, 3)


def test_batch_that_does_not_divide():
    for make in (train_batches, eval_batches):
        options = {"seed": 0} if make is train_batches else {}
        with pytest.raises(ValueError, match=r"batch 10 .* 4 processes: use 8 or 12"):
            next(make(_numbered(50), batch=10, size=4, process_count=4, **options))


def test_fit_shrinks_the_middle_as_pillow_does():
    image = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    shrunk = Image.fromarray(image).resize((24, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit(image, 16), np.asarray(shrunk)[:, 4:20])
    assert fit(image[:, :40], 40).base is image  # the right size already: nothing is copied
    assert fit(image, 64).shape == (64, 64, 3)


def test_what_fits_in_memory(damaged, tmp_path):
    assert fits(damaged, 8, memory=1920) and not fits(damaged, 8, memory=1919)
    np.save(tmp_path / "many.npy", np.zeros((9, 4, 4, 3), np.uint8))
    mapped = open_source(f"npz:{tmp_path}/many.npy")
    assert fits(mapped, 4, memory=0) and isinstance(decoded(mapped, 4).images, np.memmap)


def test_worker_processes_feed_the_same_batches(damaged, tmp_path):
    pytest.importorskip("grain")
    assert_processes_feed_the_same(tmp_path / "feed.py", tmp_path, "batch=4", auxiliary=True)


def test_workers_without_grain(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"data\.workers = 2 needs grain"):
        next(train_batches(_numbered(9), batch=3, size=2, seed=0, workers=2, memory=0))


def test_reading_needs_neither_grain_nor_tfds_nor_jax():
    program = (
        "import sys; from ood_jax.data.pipeline import train_batches;"
        "from ood_jax.data.sources import open_source;"
        "s = open_source('noise:uniform/9');"
        "next(train_batches(s, batch=3, size=8, seed=0, memory=0));"
        "print([m for m in ('grain', 'tensorflow_datasets', 'jax', 'sklearn') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
