"""Weight files of PyTorch: what they hold is read, within bounds, and damaged ones are refused."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import Call, Name, Persistent, Storages, encode, ordered, saved, write

from ood_jax.models.torch_file import read_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype("f4"),
    "half": RNG.normal(size=(5, 2)).astype("f2"),
    "brain": RNG.normal(size=(3, 3)).astype(ml_dtypes.bfloat16),
    "double": RNG.normal(size=7),
    "num_batches_tracked": np.array(12345678901, "i8"),
    "mask": np.array([True, False, True]),
    "bytes": np.arange(5, dtype="u1"),
    "none": np.zeros((0, 4), "f4"),
}


def _state(arrays):
    return lambda s: ordered({name: s.add(x) for name, x in arrays.items()})


def _safetensors(arrays) -> bytes:
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    names |= {"int64": "I64", "bool": "BOOL", "uint8": "U8"}
    header, at = {}, 0
    for name, x in arrays.items():
        place = [at, at + x.nbytes]
        header[name] = {"dtype": names[x.dtype.name], "shape": x.shape, "data_offsets": place}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(x.tobytes() for x in arrays.values())
    return struct.pack("<Q", len(text)) + text + data


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_every_type(tmp_path, kind):
    _same(read_weights(write(tmp_path, saved(kind, _state(ARRAYS)))), ARRAYS)


def test_safetensors(tmp_path):
    _same(read_weights(write(tmp_path, _safetensors(ARRAYS), "w.safetensors")), ARRAYS)


def test_safetensors_whose_first_byte_is_a_pickles(tmp_path):
    arrays = {"a" * n: np.ones(1, "f4") for n in range(1, 9)}
    for extra in range(64):
        data = _safetensors(arrays | {"b" * (8 * extra + 1): np.ones(1, "f4")})
        if data[0] == 0x80:
            found = read_weights(write(tmp_path, data, "w.safetensors"))
            assert len(found) == 9
            return
    pytest.fail("no header of that length came up")


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_views_of_one_storage(tmp_path, kind):
    flat = np.arange(24, dtype="f4")

    def make(s):
        key = s.block(flat)
        return ordered(
            {
                "whole": s.view(key, 0, (4, 6), (6, 1)),
                "turned": s.view(key, 0, (6, 4), (1, 6)),
                "column": s.view(key, 3, (4,), (6,)),
                "part": s.view(key, 13, (2, 3), (3, 1)),
            }
        )

    whole = flat.reshape(4, 6)
    expected = {"whole": whole, "turned": whole.T, "column": whole[:, 3]}
    expected["part"] = flat[13:19].reshape(2, 3)
    _same(read_weights(write(tmp_path, saved(kind, make))), expected)


def test_parameters_and_attributes(tmp_path):
    def make(s):
        hooks = Call(Name("collections", "OrderedDict"), ())
        of = Call(Name("torch._utils", "_rebuild_parameter"), (s.add(ARRAYS["half"]), True, hooks))
        return ordered({"half": of, "version": 3})

    _same(read_weights(write(tmp_path, saved("zip", make))), {"half": ARRAYS["half"]})


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize(
    ("nest", "chosen"),
    [
        (("student", "teacher", "optimizer"), "teacher"),
        (("model", "state_dict"), "state_dict"),
        (("student", "model"), "model"),
        (("optimizer", "student"), "student"),
    ],
)
def test_the_network_of_a_checkpoint(tmp_path, kind, nest, chosen):
    def make(s):
        arguments = Call(Name("argparse", "Namespace"), (), {"lr": 0.1, "out": "x"}, new=True)
        parts = {name: ordered({name: s.add(ARRAYS["half"])}) for name in nest}
        step = s.add(np.array(3, "i8"))  # a tensor at the top level is no state dict yet
        return {**parts, "epoch": 3, "args": arguments, "step": step, 1: "one"}

    found = read_weights(write(tmp_path, saved(kind, make)))
    _same(found, {chosen: ARRAYS["half"]})


def test_nests_within_nests(tmp_path):
    def make(s):
        return {"model": {"state_dict": ordered({"a": s.add(ARRAYS["half"])})}}

    _same(read_weights(write(tmp_path, saved("zip", make))), {"a": ARRAYS["half"]})


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize(
    ("view", "says"),
    [
        ({"offset": 1, "shape": (4, 3), "strides": (3, 1)}, "larger than its storage"),
        ({"offset": 0, "shape": (4, 4), "strides": (4, 1)}, "larger than its storage"),
        ({"offset": 0, "shape": (1000, 1000), "strides": (0, 0)}, "larger than its storage"),
        ({"offset": 2, "shape": (2,), "strides": (-1,)}, "below 0"),
        ({"offset": -4, "shape": (2,), "strides": (1,)}, "below 0"),
        ({"offset": 0, "shape": (2, 2), "strides": (1,)}, "do not fit together"),
        ({"offset": 0, "shape": (2.0,), "strides": (1,)}, "do not fit together"),
        ({"offset": 0, "shape": (1,) * 40, "strides": (1,) * 40}, "shape"),
        ({"offset": 0, "shape": (2**70,), "strides": (1,)}, "larger than its storage"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, kind, view, says):
    def make(s):
        key = s.block(np.arange(12, dtype="f4"))
        return {"x": s.view(key, view["offset"], view["shape"], view["strides"])}

    with pytest.raises(ValueError, match=says):
        read_weights(write(tmp_path, saved(kind, make)))


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_a_storage_shorter_than_it_says(tmp_path, kind):
    def make(s):
        key = s.block(np.arange(12, dtype="f4"))
        return {"x": s.view(key, 0, (100,), (1,), count=100)}

    with pytest.raises(ValueError, match="48 bytes, too few for 100 numbers of float32"):
        read_weights(write(tmp_path, saved(kind, make)))


def test_a_storage_that_is_not_there(tmp_path):
    gone = ("storage", Name("torch", "FloatStorage"), "7", "cpu", 3)
    of = Call(Name("torch._utils", "_rebuild_tensor_v2"), (Persistent(gone), 0, (3,), (1,)))
    for kind in ("zip", "stream"):
        path = write(tmp_path, saved(kind, lambda s: {"x": of}))
        with pytest.raises(ValueError, match="storage '7' is not there"):
            read_weights(path)


def test_archives_never_grow(tmp_path):
    storages = Storages()
    root = {"x": storages.add(np.zeros(1_000_000, "f4"))}
    packed = storages.zip(root, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 10_000
    with pytest.raises(ValueError, match="compressed"):
        read_weights(write(tmp_path, packed))
    # Many entries that are all the same bytes of the file.
    blocks = Storages()
    tensors = {f"x{i}": blocks.add(np.full(2000, i, "f4")) for i in range(20)}
    data = bytearray(blocks.zip(tensors))
    archive = zipfile.ZipFile(io.BytesIO(bytes(data)))
    first = next(e for e in archive.infolist() if "/data/" in e.filename)
    at = archive.start_dir
    for entry in archive.infolist():
        if "/data/" in entry.filename:
            struct.pack_into("<II", data, at + 20, first.file_size * 5, first.file_size * 5)
        at += 46 + len(entry.filename)
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_weights(write(tmp_path, bytes(data)))


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pth: no such file"):
        read_weights(str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match="no such file"):
        read_weights(str(tmp_path))
    for data in (b"", b"<html>not found</html>", b"\x00" * 100):
        with pytest.raises(ValueError, match="no weights that PyTorch or safetensors wrote"):
            read_weights(write(tmp_path, data))
    with pytest.raises(ValueError, match="damaged"):
        read_weights(write(tmp_path, b"<html>not found</html>", "w.safetensors"))
    with pytest.raises(ValueError, match=r"not one of torch\.save"):
        read_weights(write(tmp_path, encode(5) + encode({})))
    empty = zipfile.ZipFile(tmp_path / "w.pth", "w")
    empty.writestr("readme.txt", "hello")
    empty.close()
    with pytest.raises(ValueError, match=r"without a data\.pkl"):
        read_weights(str(tmp_path / "w.pth"))
    for root, says in (([1], "holds a list"), ({"epoch": 3}, r"no tensors .*\(epoch\)")):
        with pytest.raises(ValueError, match=says):
            read_weights(write(tmp_path, saved("zip", lambda s, root=root: root)))


SMALL = {name: saved(name, _state({"a": ARRAYS["half"]})) for name in ("zip", "stream")}
SMALL["safetensors"] = _safetensors({"a": ARRAYS["half"]})


@pytest.mark.parametrize("kind", list(SMALL))
def test_cut_files_are_refused(tmp_path, kind):
    data = SMALL[kind]
    for end in range(1, len(data) - 1, 3):
        with pytest.raises(ValueError):
            read_weights(write(tmp_path, data[:end], f"w.{kind}"))


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(list(SMALL)),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_read_or_refused(tmp_path, kind, changes):
    data = bytearray(SMALL[kind])
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        found = read_weights(write(tmp_path, bytes(data), f"w.{kind}"))
    except ValueError as error:
        assert "w." in str(error)
    else:
        assert all(isinstance(x, np.ndarray) for x in found.values())
