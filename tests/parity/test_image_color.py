"""Colour operations against torchvision on PIL images and on float tensors."""

import jax
import numpy as np
import pytest

from ood_jax.views import ops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADJUST = {
    "brightness": ops.adjust_brightness,
    "contrast": ops.adjust_contrast,
    "saturation": ops.adjust_saturation,
    "hue": ops.adjust_hue,
}


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("image_color")


@pytest.fixture(scope="module")
def pixels(arrays):
    return arrays["images"].astype(np.float32) / 255


@pytest.mark.parametrize("name", ADJUST)
def test_adjust(arrays, pixels, name):
    out = np.asarray(jax.jit(jax.vmap(ADJUST[name]))(pixels, arrays[name].astype(np.float32)))
    error = np.abs(out * 255.0 - arrays[f"pil_{name}"])
    assert error.max() <= (6 if name == "hue" else 2)
    assert error.mean() <= 0.6
    expected = arrays[f"float_{name}"]
    np.testing.assert_allclose(out[: len(expected)], expected, atol=1e-5, rtol=0)


def test_grey(arrays, pixels):
    out = np.asarray(ops.grey(pixels))
    assert np.abs(out * 255.0 - arrays["pil_grayscale"]).max() <= 1
    expected = arrays["float_grayscale"]
    np.testing.assert_allclose(out[: len(expected)], expected, atol=1e-5, rtol=0)


def test_solarize_is_exact(arrays, pixels):
    out = np.round(np.asarray(ops.solarize(pixels)) * 255).astype(np.uint8)
    np.testing.assert_array_equal(out, arrays["pil_solarize_128"])


def test_normalise(arrays, pixels):
    out = ops.normalise(pixels[0], MEAN, STD)
    np.testing.assert_allclose(out, arrays["imagenet_normalised_first"], atol=1e-5, rtol=0)


def test_jitter_in_the_order_of_pil(arrays, pixels):
    """Four operations in a row, PIL rounding after each: the bounds of the four add up."""
    out = pixels
    for name, adjust in ADJUST.items():
        out = jax.vmap(adjust)(out, arrays[name].astype(np.float32))
    error = np.abs(np.asarray(out) * 255.0 - arrays["pil_jitter_all"])
    assert error.max() <= 2 + 2 + 2 + 6
    assert error.mean() <= 4 * 0.6
