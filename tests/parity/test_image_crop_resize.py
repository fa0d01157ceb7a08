"""Crop and resize against torchvision on PIL images and on float tensors."""

import jax
import numpy as np
import pytest

from ood_jax.views import ops


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("image_crop_resize")


def _cases(arrays, prefix):
    """(expected, method, size, antialias) of every key that starts with `prefix`."""
    for key in arrays:
        if key.startswith(prefix):
            _, _, method, size, *rest = key.split("_")
            yield key, arrays[key], method, int(size), "noantialias" not in rest


def _cropped(arrays, count, method, size, antialias):
    def crop(image, box):
        return ops.crop_resize(image, box, size, method=method, antialias=antialias)

    pixels = arrays["images"][:count].astype(np.float32) / 255
    return np.asarray(jax.jit(jax.vmap(crop))(pixels, arrays["crop_box_top_left_h_w"][:count]))


def test_pil(arrays):
    cases = list(_cases(arrays, "pil_crop"))
    assert cases
    for key, expected, method, size, antialias in cases:
        out = _cropped(arrays, len(expected), method, size, antialias)
        error = np.abs(np.clip(out, 0, 1) * 255 - expected.astype(np.float64))
        assert error.max() <= 2 and error.mean() <= 0.5, key


def test_torchvision_float(arrays):
    cases = list(_cases(arrays, "float_crop"))
    assert {antialias for *_, antialias in cases} == {True, False}
    for key, expected, method, size, antialias in cases:
        out = _cropped(arrays, len(expected), method, size, antialias)
        np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0, err_msg=key)
