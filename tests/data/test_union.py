"""Unions of sources: their labels, names, arrays, filters, and what the text of one means."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ood_jax.data.pipeline import decoded, train_batches
from ood_jax.data.source import Source, from_array
from ood_jax.data.sources import Part, cut, open_source
from ood_jax.data.union import named, singles, split, union


def _source(n, first=0, labels=None, classes=(), side=4) -> Source:
    """n images whose pixels are first, first + 1, ..."""
    numbers = np.arange(first, first + n, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (n, side, side, 3)).copy()
    return from_array(f"set{first}", images, None if labels is None else np.array(labels), classes)


@pytest.fixture
def three(tmp_path):
    """a.npz: 5 images of named classes x, y, z; b.npz: 4 with numbers 0 and 3; c.npz: 3 of none."""
    rng = np.random.default_rng(0)

    def write(name, **arrays):
        n = len(arrays.pop("like"))
        images = rng.integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, **arrays)

    write("a", like=range(5), labels=np.array([0, 1, 2, 1, 0]), classes=np.array(["x", "y", "z"]))
    write("b", like=range(4), labels=np.array([3, 0, 3, -1]))
    write("c", like=range(3))
    return tmp_path


SPEC = "first=npz:a.npz + npz:b.npz + third=npz:c.npz"


def test_labels_names_and_parts(three):
    source = open_source(SPEC, root=str(three))
    a, b, c = (open_source(f"npz:{x}.npz", root=str(three)) for x in "abc")
    assert len(source) == 12 and source.spec == SPEC
    assert source.labels.tolist() == [0, 1, 2, 1, 0, 6, 3, 6, -1, 7, 7, 7]
    assert source.labels.dtype == np.int32
    of_b = tuple(f"npz:b.npz/{i}" for i in range(4))
    assert source.classes == ("first/x", "first/y", "first/z", *of_b, "third")
    assert source.parts == (
        Part("first", "npz:a.npz", source.classes[:3], 0, 0, 5),
        Part("npz:b.npz", "npz:b.npz", of_b, 3, 5, 4),
        Part("third", "npz:c.npz", ("third",), 7, 9, 3),
    )
    np.testing.assert_array_equal(source.array, np.concatenate([a.array, b.array, c.array]))
    names = ["first/0", "first/4", "npz:b.npz/0", "third/2"]
    assert [source.name(i) for i in (0, 4, 5, 11)] == names
    for i in (0, 4, 5, 8, 9, 11):
        np.testing.assert_array_equal(source.image(i), source.array[i])
    assert source.labels_of(np.array([11, 0, 6])).tolist() == [7, 0, 3]
    with pytest.raises(IndexError):
        source.image(12)


def test_parts_may_be_cut_and_their_numbers_stay(three):
    spec = "npz:a.npz[classes=y][1:] + b=npz:b.npz[classes=0] + npz:c.npz[:2]"
    source = open_source(spec, root=str(three))
    assert source.labels.tolist() == [1, 3, 7, 7]
    assert len(source.classes) == 8  # of the sets before they were cut
    cut = ["npz:a.npz[classes=y][1:]/3", "b/1", "npz:c.npz[:2]/0", "npz:c.npz[:2]/1"]
    assert [source.name(i) for i in range(4)] == cut
    whole = open_source(SPEC, root=str(three))
    np.testing.assert_array_equal(source.array, whole.array[[3, 6, 9, 10]])


@pytest.mark.parametrize("filters", ["[4:-1]", "[classes=first/y,3-6]", "[2:][:-2][1:]", "[:2]"])
def test_the_whole_is_cut_behind_parentheses(three, filters):
    whole = open_source(SPEC, root=str(three))
    source = open_source(f"( {SPEC} ){filters}", root=str(three))
    same = cut(whole, filters)
    assert source.spec == same.spec == f"({SPEC}){filters}"
    rows = source.rows.tolist()
    for found in (source, same, open_source(same.spec, root=str(three))):
        assert found.rows.tolist() == rows and found.classes == whole.classes
        assert found.labels.tolist() == whole.labels[rows].tolist()
        assert [found.name(i) for i in range(len(rows))] == [whole.name(r) for r in rows]
        assert sum(part.count for part in found.parts) == len(rows)
        for part, uncut in zip(found.parts, whole.parts, strict=True):
            own = rows[part.rows : part.rows + part.count]
            assert own == [r for r in rows if uncut.rows <= r < uncut.rows + uncut.count]
            assert part.first == uncut.first and part.classes == uncut.classes
    assert cut(same, "[:1]").spec == f"({SPEC}){filters}[:1]"


def test_a_slice_of_the_whole_and_the_rest_are_apart(three):
    whole = open_source(SPEC, root=str(three))
    front, back = cut(whole, "[:-4]"), cut(whole, "[-4:]")
    np.testing.assert_array_equal(np.append(front.labels, back.labels), whole.labels)
    assert [part.count for part in front.parts] == [5, 3, 0]


def test_a_union_within_a_union(three):
    inner = "(a=npz:a.npz + npz:c.npz)[2:-1]"
    source = open_source(f"both={inner} + b=npz:b.npz", root=str(three))
    assert source.labels.tolist() == [2, 1, 0, 3, 3, 7, 4, 7, -1]
    assert source.classes[:4] == ("both/a/x", "both/a/y", "both/a/z", "both/npz:c.npz")
    assert [part.name for part in source.parts] == ["both", "b"]
    assert source.parts[0].spec == inner


def test_images_of_several_sizes_or_on_disk_are_read_one_by_one(tmp_path):
    for k in range(2):
        Image.new("RGB", (6, 6), (90 + k,) * 3).save(tmp_path / f"{k}.png")
    folder = open_source(f"folder:{tmp_path}")
    for other in (_source(3, 10, side=8), folder):
        source = union([("own", _source(3)), ("other", other)], "own + other")
        assert source.array is None
        values = [source.image(i)[0, 0, 0] for i in range(len(source))]
        assert values == [0, 1, 2, *([10, 11, 12] if other is not folder else [90, 91])]
        np.testing.assert_array_equal(decoded(source, 4).images[:, 0, 0, 0], values)
    assert source.name(3) == "other/0.png" and source.labels.tolist() == [0, 0, 0, 1, 1]


def test_many_images_in_memory_stay_where_they_are(monkeypatch):
    pair = [("a", _source(3)), ("b", _source(2))]
    monkeypatch.setattr("ood_jax.data.union.TOGETHER", 5 * 48)
    assert union(pair, "a + b").array is not None
    monkeypatch.setattr("ood_jax.data.union.TOGETHER", 5 * 48 - 1)
    assert union(pair, "a + b").array is None


def test_labels_are_not_read_before_they_are_wanted():
    def unread(rows):
        raise AssertionError("labels of a TFDS set are read through all images")

    lazy = replace(_source(4), classes=("x", "y"), read_labels=unread)
    source = union([("lazy", lazy), ("b", _source(2, 4, [0, 1]))], "lazy + b")
    assert len(source.classes) == 4
    assert source.labels_of(np.array([5, 4])).tolist() == [3, 2]


def test_a_set_whose_labels_are_all_missing_is_one_class():
    source = union([("a", _source(2, 0, [-1, -1])), ("b", _source(1, 2, [0]))], "a + b")
    assert source.classes == ("a", "b/0") and source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("memory", [2**30, 0])
def test_batches_of_a_union(three, memory):
    source = open_source(f"({SPEC})[:8]", root=str(three))
    for size in (4, 3):
        feed = train_batches(source, batch=8, size=size, seed=0, memory=memory, balanced=True)
        batch = next(feed)
        assert batch["label"].tolist() == source.labels[batch["index"]].tolist()
        if size == 4:
            expected = source.images(batch["index"])
            np.testing.assert_array_equal(batch["image"], expected)


def test_the_text_of_a_union():
    assert split("npz:a + b=noise:gaussian[:3]") == ["npz:a", "b=noise:gaussian[:3]"]
    assert split("npz:a\n  +\n  (npz:b + npz:c)[:2]") == ["npz:a", "(npz:b + npz:c)[:2]"]
    for whole in ("folder:one + two", "folder:c++", "npz:a+npz:b", "folder:my + (copy)", "npz:a"):
        assert split(whole) == [whole]
    assert split("folder:a (copy) + folder:b") == ["folder:a (copy)", "folder:b"]
    assert named("x-1.y=npz:a + npz:b=c.npz") == [("x-1.y", "npz:a"), ("npz:b=c.npz",) * 2]
    assert named("x=(npz:a + npz:b)[:2] + npz:c")[0] == ("x", "(npz:a + npz:b)[:2]")
    spec = "(x=npz:a[:2] + (npz:b + y=list:c.txt@d[classes=1])[:3])[4:][5:]"
    assert singles(spec) == ["npz:a", "npz:b", "list:c.txt@d"]
    assert singles("folder:one + two[:3]") == ["folder:one + two"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noise:gaussian/3 + noise:gaussian/3", "two parts are called 'noise:gaussian/3'"),
        ("a=noise:gaussian + a=noise:uniform", "two parts are called 'a'; name them apart"),
        ("noise:gaussian + nois:gaussian", "'nois:gaussian' is not a source"),
        ("a=noise:gaussian + b=npz:", "names nothing"),
        ("(noise:gaussian + noise:uniform", "is not a source"),
        ("(noise:gaussian + noise:uniform)[:0]", "leaves none of the 2000 images"),
        ("(noise:gaussian + u=noise:uniform)[classes=v]", "no class 'v'; .* 0 noise:gaussian, 1 u"),
    ],
)
def test_what_is_wrong_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec)


def test_cut_takes_filters_only():
    source = open_source("noise:gaussian/5")
    assert cut(source, "") is source
    assert cut(source, "[:3]").spec == "noise:gaussian/5[:3]" and len(cut(source, "[:3]")) == 3
    with pytest.raises(ValueError, match=r"':3' is no filter; write \[:1000\]"):
        cut(source, ":3")
