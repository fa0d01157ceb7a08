"""The built-in sets: what they promise, and that no set gives another away."""

import itertools
import time

import numpy as np
import pytest

from ood_jax.data import builtin, glyphs, noise
from ood_jax.data.builtin import open_builtin
from ood_jax.data.sources import open_source

COUNTS = {
    "glyphs/train": 10_000,
    "glyphs/test": 2_000,
    "glyphs/near": 2_000,
    "glyphs/greek": 2_000,
    "glyphs/digits": 1_797,
    "glyphs/auxiliary": 8_000,
    "glyphs/validation": 1_000,
    "patches/china": 2_000,
    "patches/flower": 2_000,
}


@pytest.mark.parametrize("name", COUNTS)
def test_size_type_and_labels(name):
    source = open_builtin(name)
    assert len(source) == COUNTS[name]
    assert source.array.dtype == np.uint8 and source.array.shape[1:] == (32, 32, 3)
    assert source.array.std() > 10  # not blank
    if source.classes:
        assert source.labels.dtype == np.int32
        assert set(source.labels) == set(range(len(source.classes)))
    else:
        assert source.labels is None


def test_train_is_balanced_shuffled_and_quick():
    glyphs.render.cache_clear()
    start = time.process_time()
    source = open_builtin("glyphs/train")
    assert time.process_time() - start < 8  # seconds of one core; about 1.2
    assert "".join(source.classes) == "ABCDEFGJKL"
    assert np.all(np.bincount(source.labels) == 1_000)
    assert np.all(np.bincount(source.labels[:1_000]) > 50)  # a slice is a random sample


@pytest.mark.parametrize("name", ["glyphs/validation", "patches/china", "glyphs/digits"])
def test_two_renders_are_equal(name):
    first = open_builtin(name).array
    for cached in (glyphs.render, builtin._patches, builtin._handwritten):
        cached.cache_clear()
    second = open_builtin(name).array
    assert first is not second
    np.testing.assert_array_equal(first, second)


def test_splits_share_no_character_and_no_image():
    sets = {s.characters for s in glyphs.SPLITS.values()}
    assert len(sets) == len(glyphs.SPLITS) - 1  # train and test have the same letters
    for a, b in itertools.combinations(sets, 2):
        assert not set(a) & set(b)
    alike = set("cjkilopsuvwxyz")  # small letters with the shape of a capital in another set
    assert not alike & set(glyphs.AUXILIARY + glyphs.VALIDATION)
    train = {image.tobytes() for image in open_builtin("glyphs/train").array}
    assert len(train) == 10_000
    assert not train & {image.tobytes() for image in open_builtin("glyphs/test").array}


def _ink(face: str, character: str) -> np.ndarray:
    """The character cut out and stretched to a square, so that only its shape counts."""
    mask = glyphs._mask(face, character)
    ink = np.asarray(mask.crop(mask.getbbox()).resize((24, 24))).astype(float).ravel()
    return ink / np.linalg.norm(ink)


def test_no_character_looks_like_one_of_another_set():
    face = "DejaVuSans"
    sets = {s.characters for s in glyphs.SPLITS.values()}
    for a, b in itertools.combinations(sets, 2):
        for one, other in itertools.product(a, b):
            assert _ink(face, one) @ _ink(face, other) < 0.985, (one, other)
    assert _ink(face, "A") @ _ink(face, "А") > 0.985  # Cyrillic: the measure sees a look-alike


def test_every_face_has_every_character():
    for face in glyphs.FACES:
        absent = np.asarray(glyphs._mask(face, "\U0010fffd"))  # drawn as the face's box for "none"
        for character in set("".join(s.characters for s in glyphs.SPLITS.values())):
            drawn = np.asarray(glyphs._mask(face, character))
            assert drawn.max() > 200 and not np.array_equal(drawn, absent), (face, character)


def test_colour_says_nothing_about_the_letter():
    source = open_builtin("glyphs/train")
    corners = source.array[:, :3, :3].reshape(10_000, -1, 3).mean(1)  # the ground alone
    means = np.stack([corners[source.labels == c].mean(0) for c in range(10)])
    assert np.ptp(means, axis=0).max() < 0.15 * corners.std()


def test_noise():
    gaussian, uniform = open_source("noise:gaussian"), open_source("noise:uniform/300")
    assert len(gaussian) == 1_000 and len(uniform) == 300
    values = gaussian.array / 255
    assert abs(values.mean() - 0.5) < 0.002
    assert abs(values.std() - 0.24) < 0.01  # 0.25, less what is clipped
    assert abs(uniform.array.std() - 256 / 12**0.5) < 0.5
    noise._noise.cache_clear()
    np.testing.assert_array_equal(open_source("noise:uniform/300").array, uniform.array)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("builtin:glyphs/tests", "glyphs/test, .*patches/flower"),
        ("builtin:patches/sun", "patches/china"),
        ("builtin:", "builtin:glyphs"),
        ("noise:pink", "gaussian, uniform"),
        ("noise:gaussian/none", "noise:gaussian/5000"),
        ("noise:gaussian/0", "noise:gaussian/5000"),
    ],
)
def test_unknown_names(spec, says):
    with pytest.raises(ValueError, match=says) as error:
        open_source(spec)
    assert "\n" not in str(error.value)
