"""Weight files of PyTorch as {name: array}, without PyTorch and without running code of theirs.

Three formats: safetensors; the zip archive of torch.save since PyTorch 1.6 (data.pkl beside
data/KEY, one entry a storage); the stream before it (five pickles, then the storages).
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from numpy.lib.stride_tricks import as_strided

from ood_jax.models import torch_pickle
from ood_jax.models.torch_pickle import Storage, Tensor
from ood_jax.place import kind, local, place
from ood_jax.untrusted import WEIGHT_BYTES, read_bytes

# Where a checkpoint keeps the network: the first of these that it has. A teacher is what DINO
# scores with.
NESTS = ("teacher", "state_dict", "model", "student")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}

Blocks = Mapping[str, Any]  # storage key -> its bytes


def read_weights(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file or of a PyTorch file (.pth, .pt, .bin), by name.

    Read-only, in the file's dtype and PyTorch's layout. Of a checkpoint with several parts: the
    first of `NESTS` that it has.

    Raises:
      ValueError: no such file, another kind, damaged, or a pickle that names more than weights.
    """
    if kind(place(path)) != "file":
        raise ValueError(f"{path}: no such file; give a .safetensors, .pth, .pt or .bin")
    with local(place(path)) as near:
        return _read(near, path)


def _read(near: epath.Path, path: str) -> dict[str, np.ndarray]:
    with near.open("rb") as file:
        start = file.read(4)
    try:
        if near.suffix == ".safetensors":
            return _safetensors(near)
        if start == b"PK\x03\x04":
            return _zip(near)
        if start[:1] == b"\x80":
            return _stream(near)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: no weights that PyTorch or safetensors wrote")


def _safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(read_bytes(path, WEIGHT_BYTES))
    except SafetensorError as error:
        raise ValueError(f"damaged ({error})") from None
    out = {}
    for name, held in found:
        if held["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name} is of type {held['dtype']}; use {', '.join(SAFETENSORS)}")
        flat = np.frombuffer(held["data"], SAFETENSORS[held["dtype"]])
        out[name] = flat.reshape(held["shape"])
    return out


def _zip(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _Entries(archive, os.path.getsize(path))
            root, _ = torch_pickle.read(io.BytesIO(entries["data.pkl"]))
            return _arrays(_state_dict(root), entries)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, OverflowError) as error:
        raise ValueError(f"damaged ({error})") from None


class _Entries(Mapping[str, bytes]):
    """The archive's entries beside data.pkl; data/KEY under KEY. Never more bytes than the file."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        pickles = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("an archive without a data.pkl is not PyTorch's")
        self._archive, self._left, self._read = archive, size, dict[str, bytes]()
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in archive.namelist() and self["byteorder"] != b"little":
            raise ValueError("written on a big-endian machine; save it anew on another")

    def __getitem__(self, key: str) -> bytes:
        plain = key in ("data.pkl", "byteorder")
        name = self._folder + (key if plain else f"data/{key}")
        if name not in self._read:
            info = self._archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed, as PyTorch never does")
            self._left -= info.file_size
            if self._left < 0:
                raise ValueError(f"{name}: its entries say to be larger than the file")
            self._read[name] = self._archive.read(info)
        return self._read[name]

    def __iter__(self):
        return iter(self._archive.namelist())

    def __len__(self) -> int:
        return len(self._archive.namelist())


def _stream(path: epath.Path) -> dict[str, np.ndarray]:
    data = read_bytes(path, WEIGHT_BYTES)
    file = io.BytesIO(data)
    magic, protocol = torch_pickle.read(file)[0], torch_pickle.read(file)[0]
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise ValueError("a pickle, but not one of torch.save")
    torch_pickle.read(file)  # of the machine that wrote it; the storages are little-endian always
    root, storages = torch_pickle.read(file)
    keys, _ = torch_pickle.read(file)
    blocks, at = {}, file.tell()
    for key in keys:
        if key not in storages or len(data) < at + 8:
            raise ValueError(f"damaged (storage {key!r} is not there)")
        (count,) = struct.unpack_from("<q", data, at)
        end = at + 8 + count * storages[key].dtype.itemsize
        if count < 0 or end > len(data):
            raise ValueError(f"damaged (storage {key!r} ends after the file)")
        blocks[key] = memoryview(data)[at + 8 : end]
        at = end
    return _arrays(_state_dict(root), blocks)


def _state_dict(root: Any) -> dict[str, Tensor]:
    """The names and tensors of a checkpoint: the first nest it has, and that one's, or itself."""
    found = root
    for _ in range(3):
        nests = [n for n in NESTS if isinstance(found, dict) and isinstance(found.get(n), dict)]
        found = found[nests[0]] if nests else found
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, not a state dict")
    tensors = {n: t for n, t in found.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if not tensors:
        raise ValueError(
            f"no tensors at its top level ({', '.join(map(str, root)) or 'empty'}) nor in"
            f" {', '.join(NESTS)}"
        )
    return tensors


def _arrays(tensors: dict[str, Tensor], blocks: Blocks) -> dict[str, np.ndarray]:
    return {name: _array(name, tensor, blocks) for name, tensor in tensors.items()}


def _array(name: str, tensor: Tensor, blocks: Blocks) -> np.ndarray:
    """A read-only view of the storage; its bounds checked."""
    storage, offset, shape, strides = tensor
    if min(offset, *shape, *strides, 0) < 0:
        raise ValueError(f"{name}: shape {shape}, strides {strides} or offset {offset} below 0")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= storage.length or math.prod(shape) > storage.length:
        raise ValueError(f"{name} {list(shape)} is larger than its storage of {storage.length}")
    flat = np.frombuffer(_block(storage, blocks), storage.dtype, storage.length)
    step = storage.dtype.itemsize
    return as_strided(flat[offset:], shape, [s * step for s in strides], writeable=False)


def _block(storage: Storage, blocks: Blocks) -> Any:
    try:
        block = blocks[storage.key]
    except KeyError:
        raise ValueError(f"damaged (storage {storage.key!r} is not there)") from None
    if len(block) < storage.length * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key!r} has {len(block)} bytes, too few for {storage.length} numbers"
            f" of {storage.dtype}"
        )
    return block
