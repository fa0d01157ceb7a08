"""Files made to do harm, a few bytes each: what they say of themselves is not what they hold."""

import io
import struct
import zipfile
import zlib

import numpy as np


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The head of an npy that says to have this shape and type."""
    out = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def archive(packing: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """An npz whose entries are these bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as file:
        for name, data in entries.items():
            file.writestr(f"{name}.npy", data)
    return out.getvalue()


def claimed(*shape: int, dtype: str = "|u1") -> bytes:
    """An npz whose `images` say to have this shape, over no data."""
    return archive(images=header(shape, dtype))


def bomb(size: int, name: str = "images") -> bytes:
    """An npz of black pixels, `size` bytes (a multiple of 1 MiB, below 4 GiB) in a thousandth."""
    head = header((size >> 20, 1024, 1024))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = start + block * (size >> 20) + packer.flush()
    entry, key = len(head) + size, f"{name}.npy".encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), entry, len(key), 0)
    local = b"PK\x03\x04" + common + key + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central) + len(key), len(local), 0)
    return local + central + key + b"PK\x05\x06" + end


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG that says to have this size."""
    parts = [(b"IHDR", struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data)]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in (*parts, (b"IEND", b"")):
        out += struct.pack(">I", len(body)) + kind + body
        out += struct.pack(">I", zlib.crc32(kind + body))
    return out


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n%%EOF\n"
