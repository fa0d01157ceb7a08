"""python -m ood_jax.prepare: what each published format becomes, and what it refuses."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ood_jax.data.sources import open_source
from ood_jax.prepare import main

RNG = np.random.default_rng(0)


def _run(capsys, *argv) -> tuple[int, str]:
    code = main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert err.count("\n") <= 1
    return code, err


def _write_idx(path, array, zipped):
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(tmp_path, capsys, zipped):
    images = RNG.integers(256, size=(2_300, 5, 6), dtype=np.uint8)  # more than two chunks
    labels = RNG.integers(10, size=2_300, dtype=np.uint8)
    _write_idx(tmp_path / "train-images-idx3-ubyte.gz", images, zipped)
    _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels, zipped)
    out = tmp_path / "x.npz"
    assert _run(capsys, "idx", tmp_path / "train-images-idx3-ubyte.gz", f"--out={out}") == (0, "")
    with np.load(out, allow_pickle=False) as file:
        assert sorted(file.files) == ["images", "labels"]
        np.testing.assert_array_equal(file["images"], images)
        np.testing.assert_array_equal(file["labels"], labels)
    source = open_source(f"npz:{out}[classes=3]")
    assert source.image(0).shape == (5, 6, 3) and set(source.labels) == {3}


def test_idx_labels_by_name_or_none(tmp_path, capsys):
    images = np.zeros((3, 4, 4), np.uint8)
    _write_idx(tmp_path / "a", images, False)
    _write_idx(tmp_path / "b", np.array([4, 5, 6], np.uint8), False)
    out = f"--out={tmp_path / 'x.npz'}"
    assert _run(capsys, "idx", tmp_path / "a", out)[0] == 0
    assert open_source(f"npz:{tmp_path}/x.npz").labels is None
    assert _run(capsys, "idx", tmp_path / "a", out, f"--labels={tmp_path / 'b'}", "--force")[0] == 0
    assert open_source(f"npz:{tmp_path}/x.npz").labels.tolist() == [4, 5, 6]


def test_bad_idx(tmp_path, capsys):
    out = f"--out={tmp_path / 'x.npz'}"
    good = bytes((0, 0, 8, 3)) + np.array((3, 4, 4), ">u4").tobytes() + bytes(48)
    for name, data, says in [
        ("short", good[:-1], "cut short"),
        ("empty", b"", "cut short"),
        ("png", b"\x89PNG and more", "not an idx file"),
        ("gz", gzip.compress(good)[:-20], "damaged"),
    ]:
        (tmp_path / name).write_bytes(data)
        code, err = _run(capsys, "idx", tmp_path / name, out)
        assert code == 2 and says in err, (name, err)
    (tmp_path / "good").write_bytes(good)
    _write_idx(tmp_path / "two", np.zeros(2, np.uint8), False)
    code, err = _run(capsys, "idx", tmp_path / "good", out, f"--labels={tmp_path / 'two'}")
    assert code == 2 and "2 labels for 3 images" in err
    assert sorted(p.name for p in tmp_path.iterdir() if "x.npz" in p.name) == []


def _tar(path, files: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _cifar_rows(count, label_bytes, seed):
    rows = np.random.default_rng(seed).integers(10, size=(count, label_bytes + 3072))
    return rows.astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "label_bytes", "batches", "test", "names"),
    [
        (
            "cifar10",
            1,
            [f"data_batch_{i}.bin" for i in (1, 2)],
            "test_batch.bin",
            "batches.meta.txt",
        ),
        ("cifar100", 2, ["train.bin"], "test.bin", "fine_label_names.txt"),
    ],
)
def test_cifar(tmp_path, capsys, kind, label_bytes, batches, test, names):
    rows = {name: _cifar_rows(4, label_bytes, k) for k, name in enumerate([*batches, test])}
    classes = [f"class{i}" for i in range(10)]
    files = {f"folder/{n}": r.tobytes() for n, r in reversed(rows.items())}
    _tar(tmp_path / "c.tar.gz", files | {f"folder/{names}": ("\n".join(classes) + "\n\n").encode()})
    for split, expected in (("train", batches), ("test", [test])):
        out = tmp_path / f"{split}.npz"
        argv = (kind, tmp_path / "c.tar.gz", f"--split={split}", f"--out={out}")
        assert _run(capsys, *argv) == (0, "")
        whole = np.concatenate([rows[name] for name in expected])
        source = open_source(f"npz:{out}")
        assert source.classes == tuple(classes)
        assert source.labels.tolist() == whole[:, label_bytes - 1].tolist()
        red = whole[:, label_bytes : label_bytes + 1024].reshape(-1, 32, 32)
        np.testing.assert_array_equal(source.array[..., 0], red)  # planes of red, green, blue


def test_cifar_pickles_are_refused_unread(tmp_path, capsys):
    data = b"cbuiltins\nexit\n(I3\ntR."  # loading it would end the process
    _tar(tmp_path / "python.tar.gz", {"cifar-10-batches-py/data_batch_1": data})
    (tmp_path / "not.tar.gz").write_bytes(b"<html>not found</html>")
    out = f"--out={tmp_path / 'x.npz'}"
    code, err = _run(capsys, "cifar10", tmp_path / "python.tar.gz", out)
    assert code == 2 and "download the binary version" in err
    code, err = _run(capsys, "cifar10", tmp_path / "not.tar.gz", out)
    assert code == 2 and "not a whole tar archive" in err
    _tar(tmp_path / "cut.tar.gz", {"test_batch.bin": bytes(3000), "batches.meta.txt": b"a b"})
    code, err = _run(capsys, "cifar10", tmp_path / "cut.tar.gz", "--split=test", out)
    assert code == 2 and "cut short" in err


def test_svhn(tmp_path, capsys):
    images = RNG.integers(256, size=(4, 4, 3, 7), dtype=np.uint8)
    labels = np.array([[1, 10, 3, 9, 10, 2, 5]]).T
    savemat(tmp_path / "t.mat", {"X": images, "y": labels.astype(np.uint8)})
    out = tmp_path / "x.npz"
    assert _run(capsys, "svhn", tmp_path / "t.mat", f"--out={out}") == (0, "")
    source = open_source(f"npz:{out}")
    assert source.labels.tolist() == [1, 0, 3, 9, 0, 2, 5]
    np.testing.assert_array_equal(source.image(4), images[..., 4])
    for name, data in (("other.mat", None), ("text.mat", b"no matrix at all" * 20), ("0.mat", b"")):
        if data is None:
            savemat(tmp_path / name, {"Z": images})
        else:
            (tmp_path / name).write_bytes(data)
        code, err = _run(capsys, "svhn", tmp_path / name, f"--out={out}", "--force")
        assert code == 2 and "train_32x32.mat" in err, err


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("ant/1.png", "ant/2.jpg", "bee/1.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + k, 12), (60 * k, 0, 0)).save(tmp_path / "in" / name)
    return tmp_path


def test_folder(folder, capsys):
    out = folder / "x.npz"
    (folder / "in" / "ant" / "0.png").write_bytes(b"corrupt")
    code, err = _run(capsys, "folder", folder / "in", f"--out={out}", "--size=8")
    assert code == 0 and "left out 1 corrupt" in err
    source = open_source(f"npz:{out}")
    assert source.classes == ("ant", "bee") and source.labels.tolist() == [0, 0, 1]
    assert source.array.shape == (3, 8, 8, 3) and source.array[2, 4, 4].tolist() == [120, 0, 0]


def test_refusals(folder, capsys):
    out = folder / "x.npz"
    code, err = _run(capsys, "folder", folder / "in", f"--out={out}")
    assert code == 2 and "--size=PIXELS" in err and not out.exists()
    out.write_bytes(b"precious")
    code, err = _run(capsys, "folder", folder / "in", f"--out={out}", "--size=8")
    assert code == 2 and "--force" in err and out.read_bytes() == b"precious"
    assert _run(capsys, "folder", folder / "in", f"--out={out}", "--size=8", "--force")[0] == 0
    assert len(open_source(f"npz:{out}")) == 3
    for argv, says in [
        (("folder", folder / "in", f"--out={folder / 'x.zip'}"), ".npz"),
        (("folder", folder / "none", f"--out={folder / 'y.npz'}"), "does not exist"),
        (("folder", folder / "in", f"--out={folder / 'no' / 'y.npz'}"), "no folder"),
        (("folder", folder / "in", f"--out={folder / 'y.npz'}", "--size=-1"), "positive"),
    ]:
        code, err = _run(capsys, *argv)
        assert code == 2 and says in err
    assert [p.name for p in folder.iterdir() if p.name.startswith("y")] == []
