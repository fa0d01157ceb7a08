"""Image operations against independent NumPy forms, dm_pix and their own limits."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.views import ops


@pytest.fixture
def image():
    return np.random.default_rng(0).random((12, 12, 3), dtype=np.float32)


@pytest.mark.parametrize("method", ops.METHODS)
@pytest.mark.parametrize("antialias", [True, False])
def test_no_leak_across_the_crop_edge(image, method, antialias):
    """Pixels outside the box have no weight: changing them to huge values changes nothing."""
    top, left, height, width = 2, 3, 5, 6
    outside = np.full_like(image, 1e6)
    inside = slice(top, top + height), slice(left, left + width)
    outside[inside] = image[inside]
    crop = jax.jit(ops.crop_resize, static_argnames=("size", "method", "antialias"))
    for size in (3, 17):
        box = (top, left, height, width)
        a, b, c = (
            np.asarray(crop(x, y, size, method=method, antialias=antialias))
            for x, y in (
                (image, box),
                (outside, box),
                (image[inside], (0, 0, height, width)),
            )
        )
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=2e-6)


def test_crop_resize_is_jax_image_resize_of_the_crop(image):
    for method, name in (("bicubic", "cubic"), ("bilinear", "linear")):
        for size in (4, 20):
            out = ops.crop_resize(image, jnp.array([1, 2, 9, 7]), size, method=method)
            expected = jax.image.resize(image[1:10, 2:9], (size, size, 3), name)
            np.testing.assert_allclose(out, expected, atol=2e-6)


def test_one_compilation_serves_all_boxes(image):
    crop = jax.jit(lambda box: ops.crop_resize(image, box, 6))
    for box in ([0, 0, 12, 12], [3, 1, 4, 8], [11, 11, 1, 1]):
        out = crop(jnp.array(box))
    assert crop._cache_size() == 1
    np.testing.assert_allclose(out, np.broadcast_to(image[11, 11], (6, 6, 3)), atol=1e-6)


def test_whole_box_at_the_same_size_is_the_image(image):
    np.testing.assert_allclose(ops.resize(image, 12), image, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{"size": 0}, {"size": 4, "method": "area"}])
def test_crop_resize_refuses(image, kwargs):
    with pytest.raises(ValueError, match=r"size 0|area.*bicubic, bilinear"):
        ops.crop_resize(image, (0, 0, 4, 4), **kwargs)


def test_hue_is_colorsys(image):
    for turns in (-0.5, -0.1, 0.0, 0.03, 0.4):
        expected = [
            colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)
            for h, s, v in (colorsys.rgb_to_hsv(*p) for p in image.reshape(-1, 3).astype(float))
        ]
        out = np.asarray(ops.adjust_hue(image, turns)).reshape(-1, 3)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def test_hue_of_grey_and_of_primaries():
    pixels = np.array([[[0.3] * 3, [0] * 3, [1] * 3], np.eye(3).tolist()], np.float32)
    out = np.asarray(ops.adjust_hue(pixels, 1 / 3))
    np.testing.assert_allclose(out[0], pixels[0], atol=1e-7)
    np.testing.assert_allclose(out[1], np.roll(np.eye(3), 1, axis=1), atol=1e-6)


def test_blends_are_numpy(image):
    luma = image @ np.array(ops.LUMA, np.float32)
    for f in (0.0, 0.3, 1.0, 1.8):
        cases = {
            ops.adjust_brightness: image * f,
            ops.adjust_contrast: f * image + (1 - f) * luma.mean(),
            ops.adjust_saturation: f * image + (1 - f) * luma[..., None],
        }
        for adjust, expected in cases.items():
            np.testing.assert_allclose(adjust(image, f), np.clip(expected, 0, 1), atol=1e-6)


def test_neutral_factors_change_nothing(image):
    for adjust in (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation):
        np.testing.assert_array_equal(adjust(image, 1.0), image)
    np.testing.assert_allclose(ops.adjust_hue(image, 0.0), image, atol=1e-6)


def test_blur_is_a_convolution_with_repeated_edges(image):
    for sigma in (0.4, 1.3, 2.5):
        taps = np.arange(-30, 31)
        weight = np.exp(-0.5 * (taps / sigma) ** 2)
        weight /= weight.sum()
        out = image.astype(np.float64)
        for axis in (0, 1):
            pixel = np.clip(np.arange(12)[:, None] + taps, 0, 11)
            out = np.moveaxis(np.tensordot(np.take(out, pixel, axis), weight, (axis + 1, 0)), 0, 0)
        np.testing.assert_allclose(ops.gaussian_blur(image, sigma), out, atol=2e-6)


def test_blur_of_nothing_and_of_a_constant(image):
    np.testing.assert_array_equal(ops.gaussian_blur(image, 0.0), image)
    flat = np.full((9, 7, 3), 0.7, np.float32)
    np.testing.assert_allclose(ops.gaussian_blur(flat, 3.0), flat, atol=1e-6)


def test_dm_pix(image):
    pix = pytest.importorskip("dm_pix")
    np.testing.assert_allclose(
        ops.adjust_brightness(image, 1.0), pix.adjust_brightness(image, 0.0), atol=1e-6
    )
    np.testing.assert_allclose(ops.adjust_hue(image, 0.1), pix.adjust_hue(image, 0.1), atol=1e-5)
    np.testing.assert_array_equal(ops.horizontal_flip(image), pix.flip_left_right(image))
    blurred = pix.gaussian_blur(image, 0.8, kernel_size=9, padding="SAME")
    np.testing.assert_allclose(
        np.asarray(ops.gaussian_blur(image, 0.8))[4:-4, 4:-4], blurred[4:-4, 4:-4], atol=1e-5
    )


def test_every_uint8_value_is_solarized_as_pil_does():
    values = np.arange(256)
    pixels = np.repeat(values[:, None, None], 3, axis=2).astype(np.float32) / 255
    out = np.round(np.asarray(ops.solarize(pixels))[:, 0, 0] * 255).astype(int)
    np.testing.assert_array_equal(out, np.where(values >= 128, 255 - values, values))


def test_normalise(image):
    out = np.asarray(ops.normalise(image, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    np.testing.assert_allclose(out * [0.1, 0.2, 0.3] + [0.5, 0.4, 0.3], image, atol=1e-6)
