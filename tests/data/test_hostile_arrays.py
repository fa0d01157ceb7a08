"""Arrays and images made to do harm: refused in one line, before memory is taken for them."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hostile_files import EPS, archive, bomb, claimed, header, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ood_jax import npz
from ood_jax.data import archives
from ood_jax.data.decode import PIXELS, read_file, read_image
from ood_jax.data.files import open_folder
from ood_jax.data.source import CorruptImage
from ood_jax.data.sources import open_source

GOOD = np.zeros((4, 8, 8, 3), np.uint8)
PROPERTY = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


def saved(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def changed(data: bytes, changes) -> bytes:
    out = bytearray(data)
    for at, byte in changes:
        out[at % len(out)] = byte
    return bytes(out)


def refused(tmp_path, data: bytes, name: str = "x.npz") -> str:
    """The message; no more than 64 MB were taken on the way to it."""
    (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            open_source(f"npz:{tmp_path / name}")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (claimed(10**12, 8, 8), "64,000,000,000,000 bytes, of 0"),
        (claimed(100_000, 100_000, 100_000), "of 0"),
        (claimed(2**62, 2**62, 2**62), "of 0"),
        (bomb(3 << 30), "images unfolds to 3,221,225,"),
        (archive(images=header((4,), "|O")), "objects, which can run code"),
        (archive(images=b"\x93NUMPY\x01\x00\x28\x23{'descr': " + b"-" * 8990), "cannot be read"),
        (archive(images=b"\x93NUMPY\x03\x00" + bytes(80)), "version (3, 0)"),
        (archive(images=b"\x93NUMPY\x01\x00\x08\x00(1,\n(2, "), "cannot be read"),
        (archive(zipfile.ZIP_LZMA, images=header((4, 8, 8)) + bytes(256)), "as NumPy never does"),
        (saved(images=GOOD[:, :0]), "images is empty, [4, 0, 8, 3]"),
        (saved(images=GOOD, labels=[2**32, 0, 0, 0]), "the label 4294967296; use numbers up to"),
        (saved(images=GOOD, classes=np.array("cat")), "one name a class"),
    ],
)
def test_an_npz_is_held_against_its_file_first(tmp_path, data, says):
    assert says in refused(tmp_path, data)


def test_texts_of_no_letters_are_no_bytes_but_many(tmp_path):
    images = header(GOOD.shape) + GOOD.tobytes()
    data = archive(images=images, classes=header((10**12,), "<U0"))
    assert "1,000,000,000,000 bytes, of 0" in refused(tmp_path, data)


def test_an_encrypted_entry_is_refused(tmp_path):
    data = bytearray(saved(images=GOOD))
    central = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    assert "as NumPy never does" in refused(tmp_path, bytes(data))


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (4 * 10**9, 50_000, 50_000, 3), (2**63, 1, 1)])
def test_an_npy_is_held_against_its_file_first(tmp_path, shape):
    assert "bytes, of 64" in refused(tmp_path, header(shape) + bytes(64), "x.npy")


def test_what_is_packed_well_is_still_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((64, 64, 64, 3), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 64**3 / 100
    assert len(open_source(f"npz:{tmp_path}/x.npz")) == 64
    with npz.opened(tmp_path / "x.npz") as file:
        assert file.names == ("images",) and file.all()["images"].shape == (64, 64, 64, 3)


ARRAYS = {
    "x.npz": saved(images=GOOD, labels=[0, 1, 1, 0], classes=["a", "b"]),
    "x.npy": header(GOOD.shape) + GOOD.tobytes(),
}


@PROPERTY
@given(name=st.sampled_from(list(ARRAYS)), changes=CHANGES, end=st.integers(0, 2000))
def test_damaged_arrays_are_read_or_refused(tmp_path, name, changes, end):
    (tmp_path / name).write_bytes(changed(ARRAYS[name], changes)[: -end or None])
    try:
        source = open_source(f"npz:{tmp_path / name}")
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert source.image(0).dtype == np.uint8


def encoded(form: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(256, size=(7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("data", [png(100_000, 100_000), png(12_000, 12_000), png(2**31 - 1, 1)])
def test_an_image_of_too_many_pixels_is_not_decoded(data):
    tracemalloc.start()
    with pytest.raises(CorruptImage, match="x: cannot be decoded"):
        read_image(data, "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert PIXELS == Image.MAX_IMAGE_PIXELS


def test_no_image_starts_a_program(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(CorruptImage, match="cannot identify"):
        read_image(EPS, "x.png")


IMAGES = [encoded(f) for f in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")]
IMAGES += [encoded("PNG", mode) for mode in ("1", "LA", "P")]


@PROPERTY
@given(data=st.sampled_from(IMAGES), changes=CHANGES, end=st.integers(0, 60))
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of TIFF tags
def test_damaged_images_are_read_or_refused(data, changes, end):
    try:
        image = read_image(changed(data, changes)[: -end or None], "x")
    except CorruptImage as error:
        assert str(error).startswith("x: cannot be decoded (")
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size


def test_a_pipe_and_a_file_of_holes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with open(tmp_path / "b.png", "wb") as file:
        file.truncate(2**40)
    (tmp_path / "c.png").write_bytes(IMAGES[0])
    source = open_folder(tmp_path, "folder:x")
    for i, says in ((0, "no regular file"), (1, "1,099,511,627,776 bytes")):
        with pytest.raises(CorruptImage, match=says):
            source.image(i)
    assert source.image(2).shape == (7, 9, 3)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "gone.png")


def test_links_that_lead_in_circles(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(IMAGES[0])
    assert len(open_source(f"folder:{tmp_path}")) == 2
    for i in range(20):
        (tmp_path / "cat" / f"up{i}").symlink_to("..")
    with pytest.raises(ValueError, match=r"are one folder by a link.*remove the link"):
        open_source(f"folder:{tmp_path}")


def idx(*shape: int, data: bytes = b"") -> bytes:
    return bytes((0, 0, 8, 3)) + np.array(shape, ">u4").tobytes() + data


@pytest.mark.parametrize(
    "data",
    [
        idx(2**32 - 1, 100_000, 100_000),
        idx(2**32 - 1, 0, 0),
        idx(1, 9_000, 10_000),
        gzip.compress(idx(9, 2**31, 2**31), mtime=0),
        gzip.compress(idx(2**32 - 1, 28, 28) + bytes(1 << 20), mtime=0),
    ],
)
def test_an_idx_is_held_against_its_file_first(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match="is damaged: its header says"):
        archives.read_idx(tmp_path / "x", None)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_tar_that_grows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "TAR_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("batches.meta.txt")
        info.size = 2 << 20
        file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ValueError, match="unfolds to more than 1,048,576 bytes"):
        archives.read_cifar(tmp_path / "x.tar.gz", "cifar10", "test")


def test_a_mat_of_other_arrays_is_refused(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "x.mat", {"X": np.zeros((4, 4, 3, 2), np.uint8), "y": np.ones((3, 1))})
    with pytest.raises(ValueError, match="not a cropped-digits SVHN file"):
        archives.read_svhn(tmp_path / "x.mat")
    data = (tmp_path / "x.mat").read_bytes()
    for end in range(130, len(data), 9):
        (tmp_path / "x.mat").write_bytes(data[:end])
        with pytest.raises(ValueError, match="not a cropped-digits SVHN file"):
            archives.read_svhn(tmp_path / "x.mat")


def test_a_prepared_set_imports_nothing(tmp_path, monkeypatch):
    """tensorflow_datasets imports whatever module features.json names."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("pythonClassName", "type"):
        (folder / "features.json").write_text(f'{{"x": [{{"{key}": "hostile_module.Image"}}]}}')
        with pytest.raises(ValueError, match=r"names 'hostile_module\.Image'.*nothing was run"):
            open_source("tfds:tiny:train", root=str(tmp_path))
    (folder / "features.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is damaged"):
        open_source("tfds:tiny:train", root=str(tmp_path))
    assert "hostile_module" not in sys.modules
