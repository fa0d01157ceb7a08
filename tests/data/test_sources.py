"""Sources: every form opens, every filter cuts, every wrong input gets one line."""

import time

import numpy as np
import pytest
from PIL import Image

from ood_jax.data.sources import CorruptImage, open_source

RED, WHITE = (255, 0, 0), (255, 255, 255)


def _error(spec, **options) -> str:
    with pytest.raises(ValueError) as error:
        open_source(spec, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def tree(tmp_path):
    """cat/ with two images, dog/ with one; and what a folder also holds."""
    for name in ("cat/b.PNG", "cat/a.jpg", "dog/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), RED).save(tmp_path / name, quality=95)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / ".hidden" / "d.png")
    return tmp_path


def test_folder_with_classes(tree):
    source = open_source(f"folder:{tree}")
    assert [source.name(i) for i in range(3)] == ["cat/a.jpg", "cat/b.PNG", "dog/c.webp"]
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 1]
    assert source.image(1).shape == (4, 6, 3) and source.image(1).dtype == np.uint8
    assert source.image(1)[0, 0].tolist() == list(RED)


def test_flat_folder_relative_to_the_root(tree):
    source = open_source("folder:cat", root=str(tree))
    assert len(source) == 2 and source.labels is None and source.classes == ()


def test_missing_and_empty_folder(tmp_path):
    assert "is not a folder" in _error(f"folder:{tmp_path / 'none'}")
    assert ".jpeg" in _error(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 10), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 40), (10, 20, 30)),
        ("P", RED, RED),
        ("1", 1, WHITE),
        ("I;16", 90 * 256, (90, 90, 90)),
    ],
)
def test_modes_become_rgb(tmp_path, mode, colour, expected):
    if mode == "P":
        Image.new("RGB", (5, 5), colour).quantize(4).save(tmp_path / "x.png")
    else:
        Image.new(mode, (5, 5), colour).save(tmp_path / "x.png")
    image = open_source(f"folder:{tmp_path}").image(0)
    assert image.shape == (5, 5, 3) and image[2, 2].tolist() == list(expected)


def test_palette_with_transparency(tmp_path):
    image = Image.new("RGB", (5, 5), RED).quantize(4)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255, 255]))
    assert open_source(f"folder:{tmp_path}").image(0)[0, 0].tolist() == list(RED)


def test_corrupt_image_is_named(tree):
    whole = (tree / "cat" / "b.PNG").read_bytes()
    for data in (b"", b"no image at all", whole[:-30]):
        (tree / "cat" / "b.PNG").write_bytes(data)
        with pytest.raises(CorruptImage, match=r"b\.PNG"):
            open_source(f"folder:{tree}").image(1)


def test_list(tree):
    (tree / "with space.png").write_bytes((tree / "cat" / "b.PNG").read_bytes())
    (tree / "test.txt").write_text("dog/c.webp 7\ncat/b.PNG -1\n\nwith space.png 3\ncat/a.jpg\n")
    source = open_source(f"list:{tree}/test.txt")
    assert source.labels.tolist() == [7, -1, 3, -1]
    assert [source.name(i) for i in (0, 2, 3)] == ["dog/c.webp", "with space.png", "cat/a.jpg"]
    assert source.image(2).shape == (4, 6, 3)


def test_list_relative_to_the_root(tree, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists")
    (lists / "x.txt").write_text("cat/a.jpg -1\n")
    source = open_source(f"list:{lists}/x.txt", root=str(tree))
    assert source.image(0).shape == (4, 6, 3) and source.labels is None


def test_list_over_another_folder(tree, tmp_path_factory):
    """As OpenOOD has it: lists in one folder of the root, images in another."""
    root = tmp_path_factory.mktemp("data")
    (root / "lists").mkdir()
    (root / "lists" / "x.txt").write_text("\ufeffcat/a.jpg 5\r\ncat/b.PNG -1\r\n", encoding="utf-8")
    (root / "images").symlink_to(tree)
    for spec in ("list:lists/x.txt@images", f"list:{root}/lists/x.txt@{tree}"):
        source = open_source(f"{spec}[:2]", root=str(root))
        assert source.labels.tolist() == [5, -1] and source.image(1).shape == (4, 6, 3)
        assert source.name(0) == "cat/a.jpg"
    away = open_source(f"list:{root}/lists/x.txt@{tree}")
    assert away.image(0).shape == (4, 6, 3)
    message = _error("list:lists/x.txt@cat", root=str(root))
    assert "2 of 2 files are missing, first cat/a.jpg" in message
    assert "the folder that holds cat," in message
    # A file that is called so itself is meant.
    (tree / "me@home.txt").write_text("cat/a.jpg 2\n")
    assert open_source(f"list:{tree}/me@home.txt").labels.tolist() == [2]


def test_bad_lists(tree):
    (tree / "x.txt").write_text("cat/a.jpg 0\ncat/gone.jpg 1\ndog/gone.jpg 1\n")
    message = _error(f"list:{tree}/x.txt")
    assert "2 of 3" in message and "first cat/gone.jpg" in message and "data.root" in message
    (tree / "x.txt").write_text("\n")
    assert "is empty" in _error(f"list:{tree}/x.txt")
    assert "is not a file" in _error(f"list:{tree}/y.txt")
    assert "is not a file" in _error(f"list:{tree}/y.txt@{tree}")
    (tree / "x.txt").write_text('cat/a.jpg 1\ncat/b.PNG {"label": 2}\n')
    assert """the line 'cat/b.PNG {"label": 2}'""" in _error(f"list:{tree}/x.txt")
    (tree / "x.txt").write_text("cat/a.jpg 99999999999\n")
    assert "a whole number up to 2147483647" in _error(f"list:{tree}/x.txt")
    assert "not text in UTF-8" in _error(f"list:{tree}/cat/b.PNG")


def test_long_lists_are_checked_fast(tree):
    names = [f"cat/{i}.png" for i in range(20_000)]
    (tree / "x.txt").write_text("".join(f"{name} 0\n" for name in names))
    start = time.perf_counter()
    assert "20000 of 20000 files are missing" in _error(f"list:{tree}/x.txt")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1), (4, 8, 8, 3), (4, 8, 8, 4)])
def test_arrays(tmp_path, shape):
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=[1, 0, 1, 1], classes=["a", "b"])
    np.save(tmp_path / "x.npy", images)
    source = open_source("npz:x.npz", root=str(tmp_path))
    assert source.classes == ("a", "b") and source.labels.tolist() == [1, 0, 1, 1]
    assert source.labels.dtype == np.int32 and source.name(3) == "3"
    expected = images[2] if images.ndim == 4 else images[2, ..., None]
    np.testing.assert_array_equal(source.image(2), np.broadcast_to(expected[..., :3], (8, 8, 3)))
    mapped = open_source(f"npz:{tmp_path}/x.npy")
    np.testing.assert_array_equal(mapped.image(2), source.image(2))
    assert mapped.labels is None
    if shape[-1] == 3:
        assert isinstance(mapped.array, np.memmap)


GOOD = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": GOOD}, "it has x|has x; it needs `images`"),
        ({"images": GOOD.astype(np.float32)}, "images are float32"),
        ({"images": GOOD[..., :2]}, "C = 1, 3 or 4"),
        ({"images": GOOD[:0]}, "at least one image"),
        ({"images": GOOD, "labels": np.arange(3)}, "each of the 4 images"),
        ({"images": GOOD, "labels": np.zeros(4)}, "must be integers"),
        ({"images": GOOD, "labels": np.arange(4), "classes": ["a"]}, "label 3 with 1 classes"),
        ({"images": np.array([{}], object)}, "no objects"),
    ],
)
def test_bad_arrays(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=says):
        open_source(f"npz:{tmp_path}/x.npz")
    _error(f"npz:{tmp_path}/x.npz")


def test_files_that_are_no_arrays(tmp_path):
    for data in (b"", b"text", b"PK\x03\x04 cut short"):
        for name in ("x.npz", "x.npy"):
            (tmp_path / name).write_bytes(data)
            assert "cannot be read" in _error(f"npz:{tmp_path}/{name}")
    assert "is not a file" in _error(f"npz:{tmp_path}/none.npz")


@pytest.fixture
def numbered(tmp_path):
    """Ten images whose pixels are their numbers, labels 0 1 2 3 4 0 1 2 3 4."""
    images = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 4, 4, 3))
    labels, classes = np.arange(10) % 5, ["cat", "dog", "bee", "owl", "fox"]
    np.savez(tmp_path / "n.npz", images=images, labels=labels, classes=classes)
    np.savez(tmp_path / "unnamed.npz", images=images, labels=labels)
    np.savez(tmp_path / "bare.npz", images=images)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("", list(range(10))),
        ("[:3]", [0, 1, 2]),
        ("[7:]", [7, 8, 9]),
        ("[2:4]", [2, 3]),
        ("[-2:]", [8, 9]),
        ("[8:99]", [8, 9]),
        ("[classes=0-1,4]", [0, 1, 4, 5, 6, 9]),
        ("[classes=owl, cat]", [0, 3, 5, 8]),
        ("[classes=0-1][2:]", [5, 6]),
        ("[2:][classes=0-1][:1]", [5]),
    ],
)
def test_filters(numbered, filters, expected):
    source = open_source(f"npz:n.npz{filters}", root=numbered)
    assert len(source) == len(expected) and source.spec == f"npz:n.npz{filters}"
    assert [int(source.image(i)[0, 0, 0]) for i in range(len(source))] == expected
    assert [source.name(i) for i in range(len(source))] == [str(e) for e in expected]
    assert source.labels.tolist() == [e % 5 for e in expected]
    assert source.images(np.arange(len(source)))[:, 0, 0, 0].tolist() == expected
    assert source.classes == ("cat", "dog", "bee", "owl", "fox")
    with pytest.raises(IndexError):
        source.image(len(source))


@pytest.mark.parametrize(
    ("filters", "expected", "labels", "classes"),
    [
        ("[renumber=1,3-4]", [1, 3, 4, 6, 8, 9], [0, 1, 2, 0, 1, 2], ("dog", "owl", "fox")),
        ("[renumber=fox,cat]", [0, 4, 5, 9], [1, 0, 1, 0], ("fox", "cat")),
        ("[renumber=fox,cat][classes=0]", [4, 9], [0, 0], ("fox", "cat")),
        ("[classes=1,4][:3][renumber=4,1][1:]", [4, 6], [0, 1], ("fox", "dog")),
        ("[renumber=1,3,4][renumber=2,0]", [1, 4, 6, 9], [1, 0, 1, 0], ("fox", "dog")),
    ],
)
def test_classes_that_are_numbered_anew(numbered, filters, expected, labels, classes):
    source = open_source(f"npz:n.npz{filters}", root=numbered)
    assert [int(source.image(i)[0, 0, 0]) for i in range(len(source))] == expected
    assert source.images(np.arange(len(source)))[:, 0, 0, 0].tolist() == expected
    assert source.labels.tolist() == labels and source.labels.dtype == np.int32
    assert source.classes == classes and source.spec == f"npz:n.npz{filters}"
    unnamed = open_source("npz:unnamed.npz[renumber=1,3-4]", root=numbered)
    assert unnamed.labels.tolist() == [0, 1, 2, 0, 1, 2] and unnamed.classes == ()


def test_a_union_numbered_anew_has_no_parts(numbered):
    source = open_source("(a=npz:n.npz + b=npz:n.npz)[renumber=1,8]", root=numbered)
    assert source.classes == ("a/dog", "b/owl") and source.parts == ()
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.name(2) == "b/3"


def test_samples_of_one_seed_lie_within_each_other(numbered):
    def rows(filters):
        source = open_source(f"npz:n.npz{filters}", root=numbered)
        return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]

    assert rows("[sample=10]") == list(range(10))
    for seed in range(4):
        drawn = [rows(f"[sample={n}@{seed}]") for n in (2, 5, 9)]
        assert [len(one) for one in drawn] == [2, 5, 9]
        assert all(one == sorted(set(one)) for one in drawn)
        assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert rows("[sample=4]") == rows("[ sample=4@0]")
    assert len({tuple(rows(f"[sample=4@{seed}]")) for seed in range(9)}) > 5
    firsts, lasts = rows("[:5][sample=3@7]"), rows("[5:][sample=3@7]")
    assert [row + 5 for row in firsts] == lasts
    assert rows("[classes=0-1][sample=2@7]") == [rows("[classes=0-1]")[i] for i in _drawn(4, 2, 7)]


def _drawn(count, wanted, seed):
    """Spelt out: numbers that were published with a seed rest on it."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, count))))
    return sorted(rng.permutation(count)[:wanted])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("npz:n.npz[sample=11]", "a sample of 11 of 10 images; use 1 to 10"),
        ("npz:n.npz[classes=0][sample=3@1]", "a sample of 3 of 2 images"),
        ("npz:n.npz[sample=0]", "use 1 to 10"),
        ("npz:n.npz[sample=-1]", "no filter [sample=-1]; write [:1000]"),
        ("npz:n.npz[sample=2@]", "[sample=100@SEED]"),
        ("npz:n.npz[classes=5]", "no class '5'; there are 0 cat, 1 dog"),
        ("npz:n.npz[classes=3-9]", "no class '3-9'"),
        ("npz:n.npz[classes=owls]", "did you mean owl? there are"),
        ("npz:unnamed.npz[classes=7]", "there are 0, 1, 2, 3, 4"),
        ("npz:bare.npz[classes=1]", "no labels"),
        ("npz:bare.npz[renumber=1]", "no labels"),
        ("npz:n.npz[renumber=1,0-2]", "renumbers a class twice"),
        ("npz:n.npz[renumber=5]", "no class '5'; there are 0 cat, 1 dog"),
        ("npz:n.npz[renumber]", "[renumber=0-4,7]"),
        ("npz:n.npz[20:]", "none of the 10 images"),
        ("npz:n.npz[:2][classes=4]", "none of the 2 images"),
        ("npz:n.npz[:10%]", "no filter [:10%]; write [:1000]"),
        ("npz:n.npz[1]", "no filter [1]"),
        ("npz:n.npz[labels=1]", "[classes=cat,dog]"),
        ("zip:n.npz", "tfds:NAME[/config][:split], folder:PATH, list:FILE[@FOLDER], npz:FILE"),
        ("cifar10", "is not a source"),
        ("", "is not a source"),
        ("folder:", "write folder:PATH"),
    ],
)
def test_bad_specs(numbered, spec, says):
    assert says in _error(spec, root=numbered)
