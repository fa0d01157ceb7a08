"""How fuzz.py changes an input: anywhere, or within a format whose checksums stay right."""

import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

NUMBERS = (0, 1, 127, 128, 255, 256, 4096, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1)
TOKENS = (
    *(
        b"(",
        b")",
        b"[",
        b"]",
        b"[:3]",
        b"[classes=0-1]",
        b" + ",
        b"=",
        b":",
        b",",
        b"@",
        b"..",
        b"~",
    ),
    *(b"9" * 30, b"9" * 400, b"-", b"1e999", b"nan", b"inf", b"None", b"{", b"}", b"\x00", b"\n"),
    *(b"\x1b[2J", b"\xff", b"'", b'"', b"npz:", b"list:", b"folder:", b"noise:gaussian/", b"tfds:"),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    10**400,
    1e308,
    float("nan"),
    "",
    "\x1b[31mx\n",
)
VALUES += ([], {}, [[]], {"": {}}, [None] * 3, "../../x", {"mean": "x"})


def of_bytes(data: bytes, corpus: list[bytes], draw: random.Random) -> bytes:
    """A few changes anywhere: bytes, numbers, tokens, cuts, repeats, parts of other inputs."""
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, end = draw.randint(0, len(data)), draw.randint(0, len(data))
        low, high = min(at, end), max(at, end)
        kind = draw.randrange(7)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            form = draw.choice(("<I", ">I", "<H", ">H", "B", "<Q"))
            size = struct.calcsize(form)
            number = draw.choice(NUMBERS) % 256**size
            data = data[:at] + struct.pack(form, number) + data[at + size :]
        elif kind == 2:
            data = data[:at] + draw.choice(TOKENS) + data[at:]
        elif kind == 3:
            data = data[:low] + data[high:]
        elif kind == 4:
            data = data[:high] + data[low:high] * draw.choice((1, 2, 300)) + data[high:]
        elif kind == 5:
            other = draw.choice(corpus)
            begin = draw.randint(0, len(other))
            data = data[:low] + other[begin : begin + draw.randint(0, 64)] + data[high:]
        elif data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        data = data[:200_000]
    return data


def of_zip(data: bytes, corpus: list[bytes], draw: random.Random) -> bytes:
    """As `of_bytes`, or within one entry, whose checksum is right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return of_bytes(data, corpus, draw)
    if draw.random() < 0.3 or not parts:
        return of_bytes(data, corpus, draw)
    name = draw.choice(list(parts))
    head = 128 if draw.random() < 0.7 else len(parts[name])  # where an array's header lies
    parts[name] = of_bytes(parts[name][:head], list(parts.values()), draw) + parts[name][head:]
    out = io.BytesIO()
    packing = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(out, "w", packing) as archive:
        for key, value in parts.items():
            archive.writestr(key, value)
    return out.getvalue()


def of_image(data: bytes, corpus: list[bytes], draw: random.Random) -> bytes:
    """As `of_bytes`; of a PNG the checksums are right again."""
    data = of_bytes(data, corpus, draw)
    if not data.startswith(b"\x89PNG") or draw.random() < 0.2:
        return data
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


def of_json(data: bytes, corpus: list[bytes], draw: random.Random) -> bytes:
    """As `of_bytes`, or one value anywhere in the tree is another, absent, or nested deeply."""
    lines = data.split(b"\n")
    which = draw.randrange(len(lines)) if data.count(b"\n{") else 0
    text = lines[which] if data.count(b"\n{") else data
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return of_bytes(data, corpus, draw)
    if draw.random() < 0.2 or not isinstance(tree, dict | list) or not tree:
        return of_bytes(data, corpus, draw)
    node: Any = tree
    key: Any = None
    for _ in range(draw.randint(1, 7)):
        parent, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
        if not isinstance(node, dict | list) or not node:
            break
    if draw.random() < 0.2:
        del parent[key]
    else:
        parent[key] = draw.choice((*VALUES, node, [node], {"x": node}, str(node)))
    changed = json.dumps(tree).encode()
    if draw.random() < 0.02:
        changed = b"[" * 90_000 + changed + b"]" * 90_000
    if text is data:
        return changed
    lines[which] = changed
    return b"\n".join(lines)
