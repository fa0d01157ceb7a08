"""Writes what torch.save writes, without PyTorch: tests need files, good ones and bad ones.

The pickles are put together by hand, instruction by instruction as Python's own pickler orders them
(protocol 2), since nothing here may import what runs pickles.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

KINDS = {
    np.dtype("f4"): "Float",
    np.dtype("f8"): "Double",
    np.dtype("f2"): "Half",
    np.dtype(ml_dtypes.bfloat16): "BFloat16",
    np.dtype("i8"): "Long",
    np.dtype("i4"): "Int",
    np.dtype("i2"): "Short",
    np.dtype("i1"): "Char",
    np.dtype("u1"): "Byte",
    np.dtype("bool"): "Bool",
}


class Name(NamedTuple):
    """A module's attribute, as the instruction GLOBAL names it."""

    module: str
    attribute: str


class Call(NamedTuple):
    """name(*arguments), and its attributes after that; new: as NEWOBJ."""

    name: Name
    arguments: tuple
    state: Any = None
    new: bool = False


class Persistent(NamedTuple):
    """What is outside the pickle, under this id."""

    id: tuple


def ordered(items: dict, state: Any = None) -> "_Ordered":
    """A state dict: an OrderedDict with the attribute _metadata."""
    return _Ordered(items, {"_metadata": {"": {"version": 1}}} if state is None else state)


class _Ordered(NamedTuple):
    items: dict
    state: Any


class Storages:
    """Tensors for one file, and the bytes they live in."""

    def __init__(self):
        self.blocks: dict[str, np.ndarray] = {}

    def add(self, array: np.ndarray) -> Call:
        """A whole array as a tensor of its own."""
        key = self.block(np.ascontiguousarray(array).reshape(-1))
        whole = np.ascontiguousarray(array).strides[: array.ndim]
        return self.view(key, 0, array.shape, [s // array.itemsize for s in whole])

    def block(self, flat: np.ndarray) -> str:
        key = str(94_000_000 + len(self.blocks))
        self.blocks[key] = flat
        return key

    def view(self, key, offset, shape, strides, *, count=None) -> Call:
        flat = self.blocks[key]
        storage = ("storage", Name("torch", f"{KINDS[flat.dtype]}Storage"), key, "cpu")
        storage = Persistent((*storage, flat.size if count is None else count))
        hooks = Call(Name("collections", "OrderedDict"), ())
        arguments = (storage, offset, tuple(shape), tuple(strides), False, hooks)
        return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)

    def zip(self, root: Any, *, compression: int = zipfile.ZIP_STORED) -> bytes:
        """The archive that PyTorch writes since 1.6."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            archive.writestr("net/data.pkl", root if isinstance(root, bytes) else encode(root))
            archive.writestr("net/byteorder", b"little")
            for key, flat in self.blocks.items():
                archive.writestr(f"net/data/{key}", flat.tobytes())
            archive.writestr("net/version", b"3\n")
        return out.getvalue()

    def stream(self, root: Any) -> bytes:
        """What PyTorch wrote before that."""
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
        parts = [encode(0x1950A86A20F9469CFC6C), encode(1001), encode(system)]
        parts += [root if isinstance(root, bytes) else encode(root)]
        parts += [encode(list(self.blocks))]
        for flat in self.blocks.values():
            parts += [struct.pack("<q", flat.size), flat.tobytes()]
        return b"".join(parts)


def write(folder: Path, data: bytes, name: str = "w.pth") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def saved(kind: str, make) -> bytes:
    """A file of the format `kind` whose object is make(storages)."""
    storages = Storages()
    root = make(storages)
    return storages.zip(root) if kind == "zip" else storages.stream(root)


def encode(value: Any) -> bytes:
    """The pickle of a value, protocol 2."""
    return b"\x80\x02" + _Encoder().encode(value) + b"."


class _Encoder:
    def __init__(self):
        self.memo = 0

    def encode(self, value: Any) -> bytes:
        if isinstance(value, Name):
            return self.put(f"c{value.module}\n{value.attribute}\n".encode())
        if isinstance(value, Persistent):
            return self.encode(value.id) + b"Q"
        if isinstance(value, Call):
            code = self.encode(value.name) + self.encode(value.arguments)
            return self.put(code + (b"\x81" if value.new else b"R")) + self.build(value.state)
        if isinstance(value, _Ordered):
            made = self.encode(Call(Name("collections", "OrderedDict"), ()))
            return made + self.items(value.items) + self.build(value.state)
        if isinstance(value, dict):
            return self.put(b"}") + self.items(value)
        if isinstance(value, list):
            return self.put(b"]") + b"(" + b"".join(map(self.encode, value)) + b"e"
        if isinstance(value, tuple):
            end = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
            start = b"(" if end == b"t" else b""
            return self.put(start + b"".join(map(self.encode, value)) + end)
        return self.scalar(value)

    def scalar(self, value: Any) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, str):
            return self.put(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        raw = int(value).to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def items(self, items: dict) -> bytes:
        pairs = b"".join(self.encode(k) + self.encode(v) for k, v in items.items())
        return b"(" + pairs + b"u"

    def build(self, state: Any) -> bytes:
        return b"" if state is None else self.encode(state) + b"b"

    def put(self, code: bytes) -> bytes:
        self.memo += 1
        return code + b"r" + struct.pack("<I", self.memo - 1)
