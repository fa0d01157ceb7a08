"""Random views: where boxes fall, what the draws depend on, and how far they may go."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.views import crops, negatives, ops, specs

NONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # leaves pixels in [0, 1]
PLAIN = crops.View(8, (1.0, 1.0), (1.0, 1.0), flip=0.0)
FULL = crops.View(
    8,
    (0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_radius=(0.1, 1.0),
    solarize_probability=0.2,
)
INDEX = np.array([5, 900_000, 0, 77, 3, 1], np.int32)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)


@functools.partial(jax.jit, static_argnames=("views", "shift"))
def _views(images, index, key, views, shift=None):
    return crops.multi_view(images, index, key, views, shift=shift, **NONE)


def _boxes(scale, ratio, count=2000, size=32):
    spec = {"scale": np.float32(scale), "ratio": np.float32(ratio)}
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.vmap(lambda key: crops._box(crops._draw(key), spec, size, size))
    return np.asarray(jax.jit(draw)(keys)).T


def test_boxes_lie_inside_and_have_the_area_and_ratio_asked_for():
    top, left, height, width = boxes = _boxes((0.08, 1.0), (3 / 4, 4 / 3))
    assert np.array_equal(boxes, np.round(boxes))
    assert top.min() == left.min() == 0 and height.min() >= 1 and width.min() >= 1
    assert (top + height).max() == (left + width).max() == 32
    # rounding a side moves it by half a pixel at most
    assert ((height + 0.5) * (width + 0.5)).min() >= 0.08 * 1024
    fell_back = (height == 32) & (width == 32)
    assert ((width + 0.5) / (height - 0.5))[~fell_back].min() >= 3 / 4
    assert ((width - 0.5) / (height + 0.5))[~fell_back].max() <= 4 / 3


def test_areas_are_uniform_and_corners_too():
    top, _, height, width = _boxes((0.1, 0.3), (1.0, 1.0), 4000, 400)
    share = height * width / 400**2
    assert abs(share.mean() - 0.2) < 4 * (0.2 / 12**0.5) / 4000**0.5
    assert abs(share.std() - 0.2 / 12**0.5) < 0.005
    place = top / (400 - height)
    assert abs(place.mean() - 0.5) < 4 * (1 / 12**0.5) / 4000**0.5
    assert place.min() < 0.01 and place.max() > 0.99


def test_log_ratio_is_uniform():
    _, _, height, width = _boxes((0.1, 0.3), (1 / 2, 2.0), 4000, 400)
    ratio = np.log(width / height)
    assert abs(ratio.mean()) < 4 * (2 * np.log(2) / 12**0.5) / 4000**0.5
    assert abs(ratio.std() - 2 * np.log(2) / 12**0.5) < 0.01


@pytest.mark.parametrize(
    ("ratio", "box"), [((1 / 4, 1 / 2), (0, 8, 32, 16)), ((2.0, 4.0), (8, 0, 16, 32))]
)
def test_boxes_that_never_fit_fall_back_to_the_centre(ratio, box):
    """At the full area only a square fits, so ten of ten candidates fail."""
    boxes = _boxes((1.0, 1.0), ratio, 20)
    np.testing.assert_array_equal(boxes.T, np.broadcast_to(box, (20, 4)))


def test_a_padded_crop_is_a_window_with_black_round_it(images):
    """torchvision's RandomCrop(12, padding=2): every pixel is the image's or black, moved whole."""
    view = crops.View(12, flip=0.0, pad=2)
    index = np.arange(600, dtype=np.int32)
    many = np.repeat(images[:1], 600, axis=0)
    found = np.asarray(_views(many, index, jax.random.key(0), (view,)))[:, 0]
    padded = np.pad(images[0] / 255.0, ((2, 2), (2, 2), (0, 0)))
    corners = list(itertools.product(range(5), range(5)))
    windows = np.stack([padded[i : i + 12, j : j + 12] for i, j in corners])
    away = np.abs(found[:, None] - windows[None]).max((2, 3, 4))
    assert away.min(1).max() < 1e-6
    counts = np.bincount(away.argmin(1), minlength=25)
    assert counts.min() > 6 and counts.max() < 50  # 24 each, binomial: 6 deviations


def test_views_do_not_depend_on_the_batch(images):
    key = jax.random.key(1)
    whole = np.asarray(_views(images, INDEX, key, (FULL, FULL)))
    order = np.array([4, 0, 3, 5, 3, 3])
    part = _views(images[order], INDEX[order], key, (FULL, FULL))
    np.testing.assert_allclose(part, whole[order], atol=1e-6)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.1  # views of an image differ
    assert np.abs(whole - _views(images, INDEX, jax.random.key(2), (FULL, FULL))).max() > 0.1


def test_the_same_image_under_two_indices_differs(images):
    same = np.stack([images[0]] * 6)
    out = np.asarray(_views(same, INDEX, jax.random.key(0), (FULL, FULL)))
    assert min(np.abs(out[0] - other).max() for other in out[1:]) > 0.05


@pytest.mark.parametrize("order", specs.ORDERS)
def test_one_device_equals_two_and_they_exchange_no_pixels(images, order):
    views = (FULL._replace(jitter_order=order),) * 2
    key = jax.random.key(1)
    out, text = [], []
    for devices in (1, 2):
        batch = {"image": images, "index": INDEX}
        put = sharding.global_batch(sharding.make_mesh(devices), batch)
        arguments = put["image"], put["index"], key, views, negatives.shift("rot")
        compiled = _views.lower(*arguments).compile()
        text.append(compiled.as_text())
        out.append(np.asarray(compiled(*arguments[:3])))
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)
    assert "num_partitions=2" in text[1]
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text[1]


def test_values_stay_in_range_and_extremes_survive():
    checker = np.indices((12, 12)).sum(0) % 2 * np.uint8(255)
    images = np.repeat(checker[None, :, :, None], 3, axis=3).repeat(6, axis=0).astype(np.uint8)
    out = np.asarray(_views(images, INDEX, jax.random.key(0), (FULL, FULL)))
    assert out.dtype == np.float32 and out.shape == (6, 2, 8, 8, 3)
    assert out.min() >= 0 and out.max() <= 1
    same = PLAIN._replace(size=12)
    np.testing.assert_allclose(
        _views(images, INDEX, jax.random.key(0), (same,))[:, 0], images / 255.0, atol=1e-6
    )


def test_normalised_with_mean_and_std(images):
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    key = jax.random.key(0)
    normalised = functools.partial(crops.multi_view, views=(FULL, FULL), mean=mean, std=std)
    out = jax.jit(normalised)(images, INDEX, key)
    expected = ops.normalise(_views(images, INDEX, key, (FULL, FULL)), mean, std)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"flip": 1.0}, lambda x: x[:, ::-1]),
        ({"grey_probability": 1.0}, lambda x: np.repeat(np.asarray(ops.grey(x)), 3, axis=2)),
        ({"solarize_probability": 1.0}, ops.solarize),
        (
            {"blur_probability": 1.0, "blur_radius": (1.5, 1.5)},
            lambda x: ops.gaussian_blur(x, 1.5),
        ),
    ],
)
def test_certain_operations_happen_to_every_image(images, change, expected):
    view = PLAIN._replace(size=12, **change)
    out = _views(images, INDEX, jax.random.key(0), (view,))[:, 0]
    pixels = images.astype(np.float32) / 255
    np.testing.assert_allclose(out, [expected(x) for x in pixels], atol=2e-6)


def test_probabilities_belong_to_their_view(images):
    """One compiled body serves views that differ: only the second one is solarized."""
    views = (PLAIN, PLAIN._replace(solarize_probability=1.0), PLAIN)
    out = np.asarray(_views(images, INDEX, jax.random.key(0), views))
    np.testing.assert_array_equal(out[:, 0], out[:, 2])
    np.testing.assert_allclose(out[:, 1], ops.solarize(out[:, 0]), atol=1e-6)


def test_a_probability_is_a_frequency():
    images = np.full((1000, 4, 4, 3), 255, np.uint8)
    view = PLAIN._replace(size=4, solarize_probability=0.3)
    out = _views(images, np.arange(1000, dtype=np.int32), jax.random.key(0), (view,))
    assert abs(np.mean(np.asarray(out)[:, 0, 0, 0, 0] < 0.5) - 0.3) < 4 * (0.21 / 1000) ** 0.5


JITTERED = PLAIN._replace(size=6, jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=1.0)
ADJUST = [jax.jit(jax.vmap(operation)) for operation in crops.JITTER]
DRAWS = jax.jit(jax.vmap(lambda k, v: crops._draw(jax.random.fold_in(k, v)), (0, None)))


def _orders(images, index, key, views):
    """[V, 24, B]: is view v of image b explained by its own factors in the i-th order?"""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[1], index)
    low, high = np.array([0.2, 0.2, 0.2, -0.2]), np.array([1.8, 1.8, 1.8, 0.2])
    views_out = np.asarray(_views(images, index, key, views))
    explained = []
    for number in range(len(views)):
        factors = low + np.asarray(DRAWS(keys, number).factors) * (high - low)
        for order in itertools.permutations(range(4)):
            out = images.astype(np.float32) / 255
            for i in order:
                out = ADJUST[i](out, factors[:, i].astype(np.float32))
            error = np.abs(np.asarray(out) - views_out[:, number]).max(axis=(1, 2, 3))
            explained.append(error < 1e-4)
    return np.reshape(explained, (len(views), 24, len(images)))


@pytest.mark.parametrize("kind", specs.ORDERS)
def test_jitter_is_four_operations_in_random_order(kind):
    """Order "view": all images of a view share an order, which varies by view and by step."""
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    index = np.arange(4, dtype=np.int32)
    views = (JITTERED._replace(jitter_order=kind),) * 2
    steps = [_orders(images, index, jax.random.key(step), views) for step in range(6)]
    explained = np.stack(steps)  # [6 steps, 2 views, 24 orders, 4 images]
    assert explained.any(axis=2).all()
    shared = explained.all(axis=3)
    if kind == "view":
        assert np.array_equal(shared.sum(axis=2), np.ones((6, 2)))
        chosen = shared.argmax(axis=2)
        assert len(set(chosen[:, 0])) > 3
        assert (chosen[:, 0] != chosen[:, 1]).sum() > 3
    else:
        assert shared.any(axis=2).sum() <= 2


def test_shift_comes_after_the_crop_and_is_drawn_for_every_crop(images):
    view = PLAIN._replace(size=12, scale=(1.0, 1.0))
    out = np.asarray(_views(images, INDEX, jax.random.key(0), (view,) * 8, negatives.shift("rot")))
    pixels = images / 255.0
    turns = np.array(
        [
            [
                [np.abs(out[b, v] - np.rot90(pixels[b], k)).max() < 1e-5 for k in range(4)]
                for v in range(8)
            ]
            for b in range(6)
        ]
    )
    assert np.array_equal(turns.sum(-1), np.ones((6, 8)))
    assert turns[..., 0].sum() == 0
    assert all(len(set(row.argmax(-1))) > 1 for row in turns)
    assert all(len(set(row.argmax(-1))) > 1 for row in turns.swapaxes(0, 1))


def test_the_shift_sees_the_crop_before_flip_and_colour(images):
    view = PLAIN._replace(flip=1.0, grey_probability=1.0)

    def mark(image, key):
        """Red on the left edge."""
        return image.at[:, 0].set(jnp.array([1.0, 0.0, 0.0]))

    out = np.asarray(_views(images, INDEX, jax.random.key(0), (view,), mark))
    np.testing.assert_allclose(out[:, 0, :, -1], ops.LUMA[0], atol=1e-6)


def test_evaluation_view(images):
    out = np.asarray(crops.evaluation_view(images, size=12, **NONE))
    np.testing.assert_allclose(out, images / 255.0, atol=1e-6)
    out = np.asarray(crops.evaluation_view(images, size=5, **NONE))
    expected = jax.image.resize(images / np.float32(255), (6, 5, 5, 3), "cubic")
    np.testing.assert_allclose(out, np.clip(expected, 0, 1), atol=2e-6)


def test_simclr_view_is_the_papers_at_any_size():
    small = crops.simclr_view(32)
    assert small.scale == (0.08, 1.0) and small.flip == 0.5 and small.ratio == (3 / 4, 4 / 3)
    np.testing.assert_allclose(small.jitter, (0.4, 0.4, 0.4, 0.1))
    assert (small.jitter_probability, small.grey_probability, small.blur_probability) == (
        0.8,
        0.2,
        0,
    )
    large = crops.simclr_view(448, colour=1.0, blur=0.5)
    np.testing.assert_allclose(large.jitter, (0.8, 0.8, 0.8, 0.2))
    assert large.blur_probability == 0.5
    np.testing.assert_allclose(large.blur_radius, (0.2, 4.0))
    with pytest.raises(ValueError, match="hue"):
        crops.simclr_view(32, colour=3.0)


def test_dino_views_are_the_papers():
    first, second, local = (
        *(
            views := crops.dino_views(
                global_size=256,
                local_size=128,
                global_scale=(0.4, 1.0),
                local_scale=(0.05, 0.4),
                local_count=8,
            )
        )[0],
        views[1][0],
    )
    assert len(views[1]) == 8 and set(views[1]) == {local}
    assert (first.size, second.size, local.size) == (256, 256, 128)
    assert [v.blur_probability for v in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [v.solarize_probability for v in (first, second, local)] == [0.0, 0.2, 0.0]
    for view in (first, second, local):
        np.testing.assert_allclose(view.blur_radius, (0.1 * 256 / 224, 2 * 256 / 224))
        assert (view.flip, view.jitter_probability, view.grey_probability) == (0.5, 0.8, 0.2)
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size = 0"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 0.4)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"flip": 1.5}, "flip = 1.5"),
        ({"jitter_probability": -0.1}, "jitter_probability"),
        ({"grey_probability": float("nan")}, "grey_probability"),
        ({"blur_probability": 2}, "blur_probability"),
        ({"solarize_probability": -1}, "solarize_probability"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "hue"),
        ({"jitter": (0.1, -0.1, 0.1, 0.1)}, "jitter"),
        ({"blur_radius": (-0.1, 1.0)}, "blur_radius"),
        ({"jitter_order": "fixed"}, "view or example"),
    ],
)
def test_views_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        crops.check_views((FULL, FULL._replace(**change)))


def test_groups_are_of_one_size_and_not_empty(images):
    with pytest.raises(ValueError, match=r"size \[8, 9\]"):
        _views(images, INDEX, jax.random.key(0), (FULL, FULL._replace(size=9)))
    with pytest.raises(ValueError, match="no views"):
        _views(images, INDEX, jax.random.key(0), ())
    with pytest.raises(ValueError, match="local_count -1"):
        crops.dino_views(
            global_size=8,
            local_size=4,
            global_scale=(0.4, 1),
            local_scale=(0.1, 0.4),
            local_count=-1,
        )
