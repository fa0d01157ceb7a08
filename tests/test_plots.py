"""Pictures as SVG: text stays text, ink is the page's, and the same drawing is the same."""

import re

import numpy as np
import pytest

from ood_jax import plots


def draw(panel):
    panel.plot([0, 1], [0, 1], marker="o", label="$unclosed {math")
    panel.set_title("a < b & 漢字")
    panel.legend()


def test_svg_is_repeatable_small_and_takes_the_colour_of_the_page():
    text = plots.svg(draw, "one")
    assert text == plots.svg(draw, "one")
    assert text.startswith("<svg") and "metadata" not in text
    assert 'viewBox="0 0 240 180"' in text
    assert "currentColor" in text and plots.INK not in text
    for words in ("$unclosed {math", "a &lt; b &amp; 漢字"):
        assert f">{words}</text>" in text


def test_two_pictures_of_a_page_share_no_inner_links():
    one, two = (set(re.findall(r'id="([^"]+)"', plots.svg(draw, name))) for name in ("a", "b"))
    assert one and not one & two


def test_density_counts_what_lies_outside_in_the_outermost_bins():
    edges = np.array([0.0, 1.0, 2.0])
    scores = np.array([-np.inf, -5.0, 0.5, 1.5, np.inf])
    np.testing.assert_allclose(plots.density(scores, edges), [0.6, 0.4])


def test_bins_hold_the_bulk_of_both_kinds():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 2000), np.append(rng.normal(9, 1, 2000), [1e9, np.inf])
    edges = plots.bulk_edges(inside, outside)
    assert len(edges) == plots.BINS + 1
    assert -4 < edges[0] < -2 and 11 < edges[-1] < 13


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, np.inf])
def test_constant_scores_have_bins_of_some_width(value):
    constant = np.full(5, value)
    assert (np.diff(plots.bulk_edges(constant, constant)) > 0).all()
