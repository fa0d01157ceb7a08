"""How classes are divided, and the sets that follow from it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ood_jax import leave_out
from ood_jax.config import base, flat


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 120), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_it_is_a_partition(classes, splits, seed):
    if splits > classes:
        splits = classes
    parts = leave_out.partition(classes, splits, seed)
    assert len(parts) == splits
    assert sorted(itertools.chain(*parts)) == list(range(classes))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert all(list(part) == sorted(part) for part in parts)
    assert parts == leave_out.partition(classes, splits, seed)


def test_the_parts_of_the_public_reproduction():
    """RandomState's stream is frozen: these will not change under a sweep."""
    order = [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]
    expected = tuple(tuple(sorted(order[2 * i : 2 * i + 2])) for i in range(5))
    assert leave_out.partition(10, 5, 3) == expected
    assert leave_out.partition(10, 5, 4) != expected


@pytest.mark.parametrize(
    ("classes", "splits", "seed", "message"),
    [
        (10, 1, 0, "method.splits = 1"),
        (10, 11, 0, "method.splits = 11"),
        (0, 5, 0, "method.classes = 0"),
        (3, 2, 0, "2 are left"),
        (10, 5, -1, "method.split_seed = -1"),
    ],
)
def test_partitions_that_are_refused(classes, splits, seed, message):
    with pytest.raises(ValueError, match=message):
        leave_out.partition(classes, splits, seed)


def config_of(split=1, calibration="npz:a.npz[-9:]"):
    c = base("leave_out")
    c.data.train, c.data.test = "x=npz:a.npz[:-9] + y=npz:b.npz", "npz:t.npz"
    c.score.calibration = calibration
    c.method.classes, c.method.splits, c.method.split = 5, 2, split
    return c


@pytest.mark.parametrize("calibration", ["npz:a.npz[-9:]", ""])
@pytest.mark.parametrize("split", [0, 1])
def test_sets_are_cut_and_made_whole_again(split, calibration):
    c = config_of(split, calibration)
    before = flat(c)
    out, own = leave_out.left_out(c.method), leave_out.learnt(c.method)
    assert sorted(out + own) == list(range(5)) and len(out) == 3 - split
    keys = leave_out.cut(c)
    listed = f"({before['data.train']})"
    assert keys["data.train"] == f"{listed}[renumber={spelt(own)}]"
    assert keys["data.auxiliary"] == f"{listed}[classes={spelt(out)}]"
    assert keys["head.outputs"] == len(own)
    c.update_from_flattened_dict(keys)
    again = flat(leave_out.whole(c))
    assert again.pop("data.train") == listed
    expected = before | {"data.auxiliary": "", "head.outputs": 5}
    del expected["data.train"]
    assert again == expected


def spelt(numbers):
    """0, 1, 3 as "0-1,3"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.split", 0),
        ("method.split_seed", 5),
        ("data.test", "npz:t.npz"),
        ("data.auxiliary", "npz:other.npz"),
        ("head.outputs", 5),
    ],
)
def test_keys_that_do_not_agree(key, value):
    c = config_of()
    c.update_from_flattened_dict(leave_out.cut(c))
    leave_out.whole(c)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=r"split \d of 2 of 5 classes needs .*recipe's argument"):
        leave_out.whole(c)


def test_no_such_part():
    with pytest.raises(ValueError, match=r"method.split = 2: use 0 to 1"):
        leave_out.left_out(config_of(2).method)
