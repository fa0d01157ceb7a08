"""The spread of OOD ranks between seeds: against a loop, and what is left out."""

import math
import statistics

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ood_jax import ranks


def write(folder, parts):
    """parts: (set, scorer) -> (names, rows, ranks)."""
    folder.mkdir()
    tables = [
        pa.table(
            {
                "image": pa.array(names),
                "index": pa.array(rows, pa.int32()),
                "set": [name] * len(rows),
                "scorer": [scorer] * len(rows),
                "ood_rank": pa.array(values, pa.float64()),
            }
        )
        for (name, scorer), (names, rows, values) in parts.items()
    ]
    parquet.write_table(pa.concat_tables(tables), folder / "scores.parquet", row_group_size=7)
    return folder


def test_the_spread_is_the_mean_deviation_whatever_the_order(tmp_path):
    rng = np.random.default_rng(0)
    folders, held = {}, {}
    for seed in range(3):
        parts = {}
        for name, scorer in (("test", "a"), ("svhn", "a"), ("svhn", "b"), ("tin", "a")):
            rows = rng.permutation(11)
            values = rng.uniform(0, 100, 11)
            parts[name, scorer] = ([f"{name}/{row}" for row in rows], rows, values)
            held[seed, name, scorer] = dict(zip(rows.tolist(), values.tolist(), strict=True))
        folders[seed] = write(tmp_path / str(seed), parts)
    found = ranks.spread(folders)
    assert found.left_out == () and set(found.points) == {"svhn", "tin"}
    for name, scorer in (("svhn", "a"), ("svhn", "b"), ("tin", "a")):
        each = [
            statistics.stdev(held[seed, name, scorer][row] for seed in range(3))
            for row in range(11)
        ]
        assert found.points[name][scorer] == pytest.approx(statistics.fmean(each))


def test_two_seeds_by_hand_and_equal_ones_have_none(tmp_path):
    parts = [
        {("far", "s"): (["a", "b"], [0, 1], values)} for values in ([10, 50], [30, 50], [10, 50])
    ]
    one, two, same = (write(tmp_path / str(i), part) for i, part in enumerate(parts))
    # |10 - 30| / sqrt 2 and 0
    assert ranks.spread({0: one, 1: two}).points["far"]["s"] == pytest.approx(20 / math.sqrt(2) / 2)
    assert ranks.spread({0: one, 1: same}).points == {"far": {"s": 0.0}}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ((["a", "c"], [0, 1], [1, 2]), "far: its images differ between seeds"),
        ((["a", "b"], [0, 2], [1, 2]), "far: its images differ between seeds"),
        ((["a"], [0], [1]), "far: its images differ between seeds"),
        ((["a", "b"], [0, 1], [1, math.nan]), "far: an OOD rank of s is no number"),
    ],
)
def test_sets_that_cannot_be_compared_are_left_out_alone(tmp_path, other, says):
    own = (["a", "b"], [0, 1], [1, 2])
    first = write(tmp_path / "0", {("far", "s"): own, ("near", "s"): own})
    second = write(tmp_path / "1", {("far", "s"): other, ("near", "s"): own})
    assert ranks.spread({0: first, 1: second}) == ({"near": {"s": 0.0}}, (says,))


def test_what_is_missing_is_said(tmp_path):
    own = (["a"], [0], [1])
    one = write(tmp_path / "0", {("far", "s"): own, ("far", "t"): own})
    two = write(tmp_path / "1", {("far", "s"): own})
    found = ranks.spread({0: one, 1: two})
    assert found == ({"far": {"s": 0.0}}, ("far: not every seed was scored with t",))
    (tmp_path / "none").mkdir()
    assert ranks.spread({0: one, 7: tmp_path / "none"}).left_out == (
        "seed 7 has no scores.parquet",
    )
    (tmp_path / "none" / "scores.parquet").write_bytes(b"nonsense")
    (reason,) = ranks.spread({0: one, 7: tmp_path / "none"}).left_out
    assert reason.startswith("scores.parquet of seed 7 cannot be read (") and "\n" not in reason
    assert ranks.spread({0: one}).points == {}
