"""Bins of image-wise CLP, and the names of classes: counted by hand, and no name on another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from ood_jax import metrics, plots
from ood_jax.reporting.clp_bins import FEWEST, Sample, binned, edges, places
from ood_jax.reporting.labels import _cross, _touch, place


def test_full_bins_are_of_equal_width():
    np.testing.assert_allclose(edges([np.linspace(-8, 0, 400)]), np.arange(-8, 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=80), st.integers(1, 30))
def test_merged_bins_hold_enough_and_all(values, fewest):
    sample = np.array(values)
    bounds = edges([sample], fewest=fewest)
    held = np.bincount(places(sample, bounds), minlength=len(bounds) - 1)
    assert held.sum() == len(sample) and (bounds[0], bounds[-1]) == (sample.min(), sample.max())
    assert len(held) == 1 or held.min() >= fewest


def test_an_empty_bin_goes_to_the_emptier_neighbour():
    sample = np.concatenate([np.full(50, 0.5), np.full(10, 1.5), np.full(30, 2.5), [0.0, 3.0]])
    np.testing.assert_allclose(edges([sample], count=3, fewest=20), [0, 1, 3])


def sample(seed, count=60):
    rng = np.random.default_rng(seed)
    clp = np.repeat([-9.0, -1.0], count // 2)
    return Sample(rng.normal(size=100), clp, rng.normal(-clp / 4), clp > -5)


def test_seeds_are_averaged_and_one_seed_is_resampled():
    samples, bounds = [sample(0), sample(1)], np.array([-10.0, -5.0, 0.0])
    found = binned(samples, bounds)
    for number, part in ((0, slice(0, 30)), (1, slice(30, 60))):
        areas = [100 * metrics.auroc(s.inside, s.scores[part]) for s in samples]
        one = found[number]
        assert one.auroc == pytest.approx(np.mean(areas))
        assert one.high - one.auroc == pytest.approx(np.std(areas, ddof=1))
        assert one.auroc - one.low == pytest.approx(np.std(areas, ddof=1))
        assert one.near == (number == 1)
    alone = binned(samples[:1], bounds)
    assert all(one.low < one.auroc < one.high for one in alone.values())
    assert 5 < alone[1].high - alone[1].low < 30  # 30 images against 100


def test_a_bin_that_one_seed_has_few_images_of_is_left_out():
    short = sample(1, 2 * (FEWEST - 1))
    assert binned([sample(0), short], np.array([-10.0, -5.0, 0.0])) == {}


def test_lines_that_cross():
    flat, up, beside = (
        np.array(p, float) for p in ([[0, 1], [2, 1]], [[1, 0], [1, 2]], [[3, 0], [3, 2]])
    )
    assert _cross(flat, up) and not _cross(flat, beside) and not _cross(up, beside)


def test_names_keep_off_one_another_and_inside():
    rng = np.random.default_rng(0)
    crowd = rng.normal(size=(150, 2))
    names = ["leopard", "orange", "oak_tree", "a very long name", "lion", "tiger"]
    found = []

    def draw(panel):
        panel.scatter(*crowd.T, s=13)
        assert place(panel, names, [crowd[i : i + 1] for i in range(6)], crowd) == 6
        panel.figure.draw_without_rendering()
        inner = panel.get_window_extent()
        for text in panel.texts:
            extent = Text.get_window_extent(text)  # without the line to its point
            assert inner.x0 < extent.x0 and extent.x1 < inner.x1
            assert inner.y0 < extent.y0 and extent.y1 < inner.y1
            found.append(np.array([[extent.x0, extent.y0], [extent.x1, extent.y1]]))

    plots.svg(draw, "names", (240, 230))
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert len(pairs) == 15 and not any(_touch(a, b) for a, b in pairs)


def test_a_name_without_room_is_not_written():
    def draw(panel):
        panel.scatter([0, 1], [0, 1])
        at = np.array([[0.5, 0.5]])
        assert place(panel, ["x" * 90, "fits"], [at, at], at) == 1
        assert [text.get_text() for text in panel.texts] == ["fits"]

    plots.svg(draw, "room", (240, 180))
