"""Draws of images that a batch holds more than once."""

import jax
import numpy as np
import pytest

from ood_jax import sharding
from ood_jax.views.crops import multi_view, simclr_view
from ood_jax.views.draws import draw_numbers


def test_only_what_comes_again_is_renumbered():
    index = np.array([7, 3, 7, 7, 0, 3, 2**31 - 1], np.int32)
    numbers = np.asarray(jax.jit(draw_numbers)(index))
    assert numbers.dtype == np.int32
    np.testing.assert_array_equal(numbers[[0, 1, 4, 6]], index[[0, 1, 4, 6]])
    assert len(set(numbers.tolist())) == len(index)


@pytest.mark.parametrize("images", [1, 5, 1000])
def test_all_differ_on_any_number_of_devices(images):
    index = np.random.default_rng(0).integers(0, images, 256).astype(np.int32)
    found = []
    for devices in (1, 2):
        mesh = sharding.make_mesh(devices)
        batch = sharding.global_batch(mesh, {"index": index})
        found.append(np.asarray(jax.jit(draw_numbers)(batch["index"])))
    np.testing.assert_array_equal(*found)
    assert len(set(found[0].tolist())) == 256
    first = np.unique(index, return_index=True)[1]
    np.testing.assert_array_equal(found[0][first], index[first])


def test_one_image_many_times_has_as_many_views():
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    images, index = np.repeat(image, 8, 0), np.zeros(8, np.int32)
    seen = multi_view(
        images,
        draw_numbers(index),
        jax.random.key(0),
        (simclr_view(16),),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    assert len({view.tobytes() for view in np.asarray(seen)}) == 8
