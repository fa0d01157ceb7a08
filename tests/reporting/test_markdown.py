"""Text in Markdown is shown as it is."""

import numpy as np
import pytest

from ood_jax.reporting.blocks import Mistake, Mistakes, clean, short
from ood_jax.reporting.markdown import _sheet, escaped


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("75.53 ± 0.2", "75.53 ± 0.2"),
        ("1. list", "1\\. list"),
        ("-2.5", "\\-2.5"),
        ("# title", "\\# title"),
        ("a|b_c*d`e[f](g)$", "a\\|b\\_c\\*d\\`e\\[f\\](g)\\$"),
        ("<b>&", "&lt;b&gt;&amp;"),
    ],
)
def test_nothing_is_markup(text, safe):
    assert escaped(text) == safe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a b c"),
        ("a\x00\u202eb", "a\ufffd\ufffdb"),
        ("\ud800", "\ufffd"),
        ("é 漢", "é 漢"),
    ],
)
def test_names_are_one_line_of_printable_letters(text, shown):
    assert clean(text) == shown


def test_short_names_keep_both_ends():
    assert short("abc", 5) == "abc" and short("abcdefgh", 5) == "ab…gh"


def test_the_sheet_has_the_image_and_its_neighbours_side_by_side():
    red, blue = (np.full((4, 4, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    item = Mistake(red, "name", "facts", ((blue, 0.5), (blue, 0.25)))
    sheet = _sheet(Mistakes("m", "title", (item, item)))
    assert (sheet == [255, 0, 0]).all(-1).sum() == 2 * 64 * 64
    assert (sheet == [0, 0, 255]).all(-1).sum() == 4 * 64 * 64
