"""Files of outliers: there and back, whole or absent, and what anyone may have made of them."""

import json

import numpy as np
import pytest
from hostile_files import archive, bomb, claimed

from ood_jax.outliers import Outliers, read, write

PROVENANCE = {"seed": 3, "settings": {"neighbour": 4}, "checkpoint": "ab12"}


def some(kind="near", **arrays):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    return Outliers(rows, kind, PROVENANCE, arrays)


def test_there_and_back(tmp_path):
    path = tmp_path / "mine" / "outliers.npz"
    given = some(source=np.arange(5, dtype=np.int32))
    write(path, given)
    found = read(path, kind="near", width=3)
    np.testing.assert_array_equal(found.features, given.features)
    np.testing.assert_array_equal(found.arrays["source"], given.arrays["source"])
    assert found.kind == "near" and found.provenance == PROVENANCE
    assert read(path).features.dtype == np.float32
    assert [file.name for file in path.parent.iterdir()] == ["outliers.npz"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "outliers.npz"
    write(path, some())
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ValueError, match="cannot be written"):
        write(path, some("far"))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_wrong_file_is_told(tmp_path):
    path = tmp_path / "outliers.npz"
    with pytest.raises(ValueError, match=r"data.near = .*no such file; run the stage that mines"):
        read(path, kind="near", key="data.near")
    with pytest.raises(ValueError, match="no such file: name another"):
        read(path)
    write(path, some("far"))
    with pytest.raises(ValueError, match="has far outliers: give a file of near ones"):
        read(path, kind="near")
    with pytest.raises(ValueError, match="outliers of width 3, where 4 is needed"):
        read(path, width=4)
    with pytest.raises(ValueError, match="kind 'close': use near or far"):
        read(path, kind="close")


def test_what_is_no_outliers_is_not_written(tmp_path):
    path = tmp_path / "outliers.npz"
    good = some()
    wrong = {
        "kind 'odd'": good._replace(kind="odd"),
        r"lacks \['seed'\]": good._replace(provenance={"settings": {}, "checkpoint": ""}),
        r"may not have \['kind'\]": good._replace(provenance={**PROVENANCE, "kind": "far"}),
        "not finite": good._replace(features=np.full((2, 3), np.nan)),
        r"shape \[5\]": good._replace(features=np.zeros(5)),
        r"source \[4\] for 5 outliers": good._replace(arrays={"source": np.zeros(4)}),
        "source holds Python objects": good._replace(arrays={"source": np.array([{}] * 5)}),
        "cannot be called features": good._replace(arrays={"features": np.zeros(5)}),
    }
    for message, outliers in wrong.items():
        with pytest.raises(ValueError, match=message):
            write(path, outliers)
    assert not list(tmp_path.iterdir())


def test_hostile_files(tmp_path):
    path = tmp_path / "outliers.npz"
    meta = {"schema": 1, "kind": "near", **PROVENANCE}

    def saved(meta, **arrays):
        np.savez(path, meta=np.array(meta if isinstance(meta, str) else json.dumps(meta)), **arrays)
        return path.read_bytes()

    rows = some().features
    files = {
        "empty": b"",
        "text": b"not an archive",
        "claims": claimed(1 << 40),
        "bomb": bomb(1 << 31, "features"),
        "no arrays": archive(),
        "no features": saved(meta),
        "no JSON": saved("{", features=rows),
        "deep": saved("[" * 10**5, features=rows),
        "a list": saved([1], features=rows),
        "another schema": saved({**meta, "schema": 2}, features=rows),
        "no kind": saved({"schema": 1}, features=rows),
        "another kind": saved({**meta, "kind": ["near"]}, features=rows),
        "float64": saved(meta, features=rows.astype(np.float64)),
        "not finite": saved(meta, features=np.full((2, 3), np.inf, np.float32)),
        "no rows": saved(meta, features=rows[:0]),
        "lengths": saved(meta, features=rows, source=np.zeros(4)),
        "half": saved(meta, features=rows)[:-200],
    }
    for data in files.values():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"data.far = .* cannot be read \(.+\): make it anew"):
            read(path, key="data.far")
