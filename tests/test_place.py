"""Places on a disk and on object storage, and what is said where there is none."""

import errno
import os

import fsspec
import numpy as np
import pytest
from etils import epath
from stored import Denied, objects

from ood_jax import cache, npz, place
from ood_jax.atomic import check_writable, replaced
from ood_jax.untrusted import read_bytes


@pytest.fixture
def store():
    with objects("bucket") as found:
        yield found


def test_local_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(place.place("~/a")) == f"{tmp_path}/a"
    assert os.fspath(place.under(str(tmp_path), "~/a")) == f"{tmp_path}/a"
    assert os.fspath(place.under("", "a")) == "a" and not place.is_remote(tmp_path)
    assert not place.is_remote("npz:gs://bucket/a") and not place.is_remote("a.txt@gs://bucket")
    below = epath.Path("~odd")  # a name in a folder, not a flag
    assert place.place(below) == below
    monkeypatch.chdir(tmp_path)
    assert os.fspath(place.absolute(place.place("a/../b"))) == f"{tmp_path}/b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("~no-such-user/a", "^~no-such-user/a: ~no-such-user is nobody's home here"),
        ("ftp://host/a", "^ftp://host/a: write gs://BUCKET"),
        ("hdfs2://bucket/a", "write gs://BUCKET"),
        ("gs://", "write gs://BUCKET"),
        ("gs:///a", "write gs://BUCKET"),
    ],
)
def test_what_is_no_place(text, says):
    with pytest.raises(ValueError, match=says) as error:
        place.place(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_missing_package_is_named_by_its_extra(scheme, monkeypatch):
    def missing(_):
        raise ImportError("Please install some package")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    extra = {"gs": "gcs", "s3": "s3"}[scheme]
    with pytest.raises(ValueError, match=rf"pip install 'ood_jax\[{extra}\]'$"):
        place.place(f"{scheme}://bucket/a")


def test_remote_ones_keep_their_bucket(store):
    path = place.place("gs://bucket/a")
    assert place.is_remote(path) and str(place.absolute(path) / "b") == "gs://bucket/a/b"
    assert str(place.under("gs://bucket/a", "b/c.npz")) == "gs://bucket/a/b/c.npz"
    assert str(place.under("gs://other/a", "gs://bucket/b")) == "gs://bucket/b"
    assert str(place.under("/disk", "gs://bucket/b")) == "gs://bucket/b"


@pytest.fixture(params=["disk", "gs"])
def root(request, tmp_path, store):
    """A folder on a disk, or on storage."""
    return epath.Path(tmp_path) if request.param == "disk" else epath.Path("gs://bucket/root")


def _write(path, data=b"text"):
    with replaced(path) as fresh:
        assert not place.is_remote(fresh) and fresh.suffix == path.suffix
        fresh.write_bytes(data)


def test_the_same_questions_have_the_same_answers(root):
    assert place.kind(root / "a") == place.kind(root / "a.txt" / "b") == ""
    for name in ("a/b/one.txt", "a/two.txt", "x/a/three.txt"):
        _write(root / name, name.encode())
    assert [place.kind(root / name) for name in ("a", "a/two.txt", "b")] == ["folder", "file", ""]
    sizes = {"b/one.txt": 11, "two.txt": 9}
    assert place.sizes(root / "a") == sizes and place.sizes(root / "none") == {}
    assert sorted(place.names(root / "a")) == ["b", "two.txt"] and place.names(root / "none") == []
    assert place.holding(root, "a") == [root, root / "x"]
    assert place.stamp(root / "none") is None
    before = place.stamp(root / "a/two.txt")
    assert before == place.stamp(root / "a/two.txt") and before[1] == 9
    _write(root / "a/two.txt", b"other")
    assert place.stamp(root / "a/two.txt") != before
    place.remove(root / "a/two.txt")
    place.remove(root / "a/two.txt")
    assert place.kind(root / "a/two.txt") == ""


def test_no_more_is_read_than_the_limit(root):
    _write(root / "a.txt", b"12345")
    _write(root / "empty.txt", b"")
    assert read_bytes(root / "a.txt", 5) == b"12345" and read_bytes(root / "empty.txt", 5) == b""
    with pytest.raises(ValueError, match=r"4 are read at most|more bytes than 4"):
        read_bytes(root / "a.txt", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(root / "none", 4)


def test_an_error_on_the_way_leaves_what_was_there(root):
    _write(root / "a.txt", b"old")
    with pytest.raises(KeyboardInterrupt), replaced(root / "a.txt") as fresh:
        fresh.write_bytes(b"half")
        raise KeyboardInterrupt
    assert read_bytes(root / "a.txt", 9) == b"old" and place.names(root) == ["a.txt"]


def test_arrays_come_from_a_copy(root):
    with replaced(root / "a.npy") as fresh, open(fresh, "wb") as file:
        np.save(file, np.arange(6).reshape(2, 3))
    array = npz.mapped(root / "a.npy")
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    meta, made = {"of": "this"}, []

    def compute():
        made.append(1)
        return {"x": np.ones(3)}

    for _ in range(2):
        np.testing.assert_array_equal(cache.cached(root / "b.npz", meta, compute)["x"], np.ones(3))
    assert made == [1]


@pytest.mark.parametrize(
    ("code", "kind"), [(403, PermissionError), (401, PermissionError), (503, OSError)]
)
def test_a_clients_errors_are_oserrors_that_name_the_place(code, kind, store):
    store.put("bucket", "a.npz", b"")
    store.refuse = lambda method, path: code
    path = epath.Path("gs://bucket/a.npz")
    for act in (
        lambda: place.kind(path),
        lambda: place.stamp(path),
        lambda: place.sizes(path.parent),
        lambda: place.names(path.parent),
        lambda: place.holding(path.parent, "checkpoints"),
        lambda: read_bytes(path, 9),
        lambda: place.local(path).__enter__(),
        lambda: place.send(__file__, path),
        lambda: place.remove(path),
    ):
        with pytest.raises(kind, match=rf"^gs://bucket.*refused, {code}") as error:
            act()
        assert type(error.value) is kind and str(error.value).count("gs://") == 1
    with pytest.raises(ValueError, match=r"^gs://bucket cannot be written \(gs://bucket/.writable"):
        check_writable(path.parent)


def test_gcsfs_says_forbidden_in_an_oserror():
    said = "gs://b/a: OSError: Forbidden: denied"
    with pytest.raises(PermissionError, match=said), place.told("gs://b/a"):
        raise OSError("Forbidden: denied")
    with pytest.raises(Denied), place.told("a"):  # of a disk nothing changes
        raise Denied(403)


def test_a_folder_that_may_not_be_read_is_not_absent(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(place.os, "stat", denied)
    with pytest.raises(PermissionError):
        place.kind(tmp_path / "a")
