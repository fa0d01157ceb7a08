"""Shifting transforms: what they keep, how often they draw what, and what they refuse."""

import jax
import numpy as np
import pytest

from ood_jax.views import negatives


@pytest.fixture
def image():
    return np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)


def _draws(name, image, count=400):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(jax.vmap(negatives.shift(name), (None, 0)))(image, keys))


@pytest.mark.parametrize(("name", "quarters"), [("rot", (1, 2, 3)), ("rot360", (0, 1, 2, 3))])
def test_rotations_are_rot90_and_as_likely(name, quarters, image):
    out = _draws(name, image)
    counts = [sum(np.array_equal(o, np.rot90(image, k)) for o in out) for k in range(4)]
    assert sum(counts) == len(out)
    expected = len(out) / len(quarters)
    for k in range(4):
        if k in quarters:
            assert abs(counts[k] - expected) < 4 * expected**0.5
        else:
            assert counts[k] == 0


@pytest.mark.parametrize(("name", "grid"), [("perm4", 2), ("perm16", 4), ("pixperm", 8)])
def test_permutations_move_whole_patches(name, grid, image):
    side = 8 // grid
    patch = image.reshape(grid, side, grid, side, 3).swapaxes(1, 2).reshape(grid * grid, -1)
    names = {p.tobytes(): i for i, p in enumerate(patch)}
    orders = set()
    for out in _draws(name, image, 100):
        moved = out.reshape(grid, side, grid, side, 3).swapaxes(1, 2).reshape(grid * grid, -1)
        orders.add(tuple(names[np.ascontiguousarray(p).tobytes()] for p in moved))
    assert all(sorted(order) == list(range(grid * grid)) for order in orders)
    assert len(orders) > (20 if grid == 2 else 95)


def test_none_changes_nothing(image):
    np.testing.assert_array_equal(_draws("none", image, 2), np.stack([image] * 2))


def test_angle_agrees_with_quarter_turns(image):
    for quarters in range(4):
        out = negatives.rotate_angle(image, 90.0 * quarters)
        np.testing.assert_array_equal(out, np.rot90(image, quarters))


def test_angle_is_pils_nearest_rotation(image):
    from PIL import Image

    pixels = (image * 255).astype(np.uint8)
    for degrees in (10.0, 45.0, 133.0, 301.0):
        expected = np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.NEAREST))
        out = np.asarray(negatives.rotate_angle(pixels, degrees))
        assert np.mean(np.any(out != expected, axis=-1)) <= 2 / 64, degrees


def test_angles_cover_the_circle(image):
    """A bright pixel right of the centre turns into every quadrant as often."""
    dot = np.zeros((9, 9, 1), np.float32)
    dot[4, 7] = 1
    out = _draws("rot_angle", dot)[..., 0]
    row, column = (np.array([np.argwhere(o)[0] for o in out if o.any()]) - 4).T
    quadrant = (np.arctan2(-row, column) % (2 * np.pi) / (np.pi / 2)).astype(int)
    assert np.bincount(quadrant, minlength=4).min() > 60


def test_sizes_that_do_not_divide_are_refused():
    wrong = np.zeros((10, 10, 3), np.float32)
    with pytest.raises(ValueError, match=r"10 px.*4 x 4"):
        jax.eval_shape(negatives.perm16, wrong, jax.random.key(0))
    oblong = np.zeros((8, 6, 3), np.float32)
    for name in ("rot", "rot_angle", "perm4"):
        with pytest.raises(ValueError, match="square"):
            jax.eval_shape(negatives.shift(name), oblong, jax.random.key(0))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"'rot45'.*rot360"):
        negatives.shift("rot45")
