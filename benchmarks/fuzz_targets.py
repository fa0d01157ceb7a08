"""What fuzz.py feeds: for each reader of text, images and arrays good examples and known traps."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz_changes import of_bytes, of_image, of_zip
from hostile_files import EPS, bomb, claimed, png
from PIL import Image

Change = Callable[[bytes, list[bytes], random.Random], bytes]


class Target(NamedTuple):
    """seeds: are read. hostile: traps to begin with. run: reads one input, in any way it likes."""

    run: Callable[[bytes], Any]
    seeds: list[bytes]
    hostile: list[bytes]
    change: Change


def _saved(folder: Path, name: str, **arrays: Any) -> bytes:
    np.savez_compressed(folder / name, **arrays)
    return (folder / name).read_bytes()


def _looked_at(source: Any) -> None:
    found = source.labels, source.classes, source.name(0)
    assert found
    source.image(0)


def _overrides(folder: Path) -> Target:
    from ood_jax import recipe
    from ood_jax.config import base

    config = base()

    def run(data: bytes) -> None:
        recipe.override(config, [f"--config.{data.decode('utf-8', 'surrogateescape')}"], ("",))

    keys = [b"train.steps=7", b"optim.lr=0.1", b"data.train=npz:x", b"score.near=a=x,b=y"]
    keys += [b"score.near=('a=x',\"b=y\")", b"data.mean=.1,.2,.3"]
    hostile = [b"train.steps=" + b"9" * 400, b"score.near=a\nb", b"train.steps={[]:1}"]
    hostile += [b"train.steps=" + b"-" * 9000 + b"1", b"data.mean=" + b"(" * 9000]
    hostile += [b"method.name=..x", b"method.name=os", b"train.steps=1" + b"+1" * 9000]
    return Target(run, keys, hostile, of_bytes)


def _settings(folder: Path) -> Target:
    from ood_jax.sweep import parse_setting

    seeds = [b"optim.lr=.1,.2", b'score.near=["a,b", "c", 1, [2.5, true], null]']
    hostile = [b"a=" + b"[" * 100_000, b"a=[" + b"9" * 9000 + b"]"]
    return Target(
        lambda data: parse_setting(data.decode("utf-8", "replace")), seeds, hostile, of_bytes
    )


def _sources(folder: Path) -> Target:
    from ood_jax.cache import stamp
    from ood_jax.data.sources import open_source

    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    _saved(folder, "a.npz", images=pixels, labels=np.arange(6) % 3, classes=["x", "y", "z"])
    _saved(folder, "b.npz", images=pixels, labels=[0, 1, 2, 0, 2**31 - 1, 0])
    np.save(folder / "c.npy", pixels)
    Image.fromarray(pixels[0]).save(folder / "d.png")
    (folder / "e.txt").write_text("d.png 0\nd.png 7\n")

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        _looked_at(open_source(text, root=str(folder)))
        stamp(text, str(folder))

    seeds = [b"npz:a.npz[classes=x,2][:1]", b"npz:c.npy + list:e.txt", b"list:e.txt@.[1:]"]
    seeds += [b"(one=npz:a.npz + two=npz:c.npy[-2:])[sample=3@1]", b"noise:gaussian/3", b"folder:."]
    hostile = [b"(" * 5000 + b"npz:a.npz" + b")" * 5000, b"npz:b.npz[classes=0-2147483647]"]
    hostile += [b"npz:a.npz" + b"[:5]" * 30_000 + b"x", b"npz:~nobody-here/x", b"npz:a\x00b"]
    hostile += [b"noise:gaussian/1000000000000", b"npz:a.npz + npz:b.npz", b"npz:" + b"a" * 5000]
    hostile += [b"npz:a.npz[:" + b"9" * 5000 + b"]", b"npz:a.npz" + b" + npz:(" * 9000]
    return Target(run, seeds, hostile, of_bytes)


def _images(folder: Path) -> Target:
    from ood_jax.data.decode import fit, read_image

    rng, seeds = np.random.default_rng(0), []
    for mode, form in (
        *(("RGB", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("LA", "PNG"), ("RGB", "JPEG")),
        *(("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("P", "GIF"), ("RGB", "PPM")),
        *(("RGB", "TIFF"), ("L", "BMP"), ("1", "PNG")),
    ):
        image = Image.fromarray(rng.integers(256, size=(7, 9, 3), dtype=np.uint8))
        image = Image.new("I;16", (9, 7), 700) if mode == "I;16" else image.convert(mode)
        out = io.BytesIO()
        image.save(out, form, **({"transparency": 0} if (mode, form) == ("P", "PNG") else {}))
        seeds.append(out.getvalue())
    large = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(large, "PNG")

    def run(data: bytes) -> None:
        fit(read_image(data, "x"), 32)

    return Target(run, seeds, [png(100_000, 100_000), EPS, large.getvalue()], of_image)


def _arrays(folder: Path) -> Target:
    from ood_jax.data.sources import open_source

    def run(data: bytes) -> None:
        (folder / "x.npz").write_bytes(data)
        _looked_at(open_source(f"npz:{folder}/x.npz"))

    pixels = np.arange(4 * 5 * 5 * 3, dtype=np.uint8).reshape(4, 5, 5, 3)
    seeds = [
        _saved(folder, "s.npz", images=pixels, labels=[0, 1, 1, 0], classes=["cat", "dog"]),
        _saved(folder, "s.npz", images=pixels[..., 0], labels=np.array([0, 1, 1, 0], np.uint8)),
    ]
    hostile = [
        _saved(folder, "s.npz", images=pixels, labels=[2**32, 0, 0, 0]),
        _saved(folder, "s.npz", images=pixels, classes=np.array("cat")),
        _saved(folder, "s.npz", images=pixels[:, :0]),
        claimed(100_000, 100_000, 100_000),
        bomb(3 * 1024**3),
    ]
    return Target(run, seeds, hostile, of_zip)


def _npy(folder: Path) -> Target:
    from ood_jax.data.sources import open_source

    def run(data: bytes) -> None:
        (folder / "x.npy").write_bytes(data)
        _looked_at(open_source(f"npz:{folder}/x.npy"))

    out = io.BytesIO()
    np.save(out, np.zeros((4, 5, 5, 3), np.uint8))
    large = out.getvalue().replace(b"(4, 5, 5, 3), }", b"(4000000000, 50000, 50000, 3), }")
    deep = b"\x93NUMPY\x01\x00\x28\x23" + b"{'descr': " + b"-" * 8900 + b"1}"
    return Target(run, [out.getvalue()], [large, deep], of_bytes)


def _lists(folder: Path) -> Target:
    from ood_jax.data.sources import open_source

    for name in ("a.png", "b c.png"):
        Image.new("RGB", (4, 4)).save(folder / name)

    def run(data: bytes) -> None:
        (folder / "x.txt").write_bytes(data)
        _looked_at(open_source(["list:x.txt", "list:x.txt[:1]"][0], root=str(folder)))
        _looked_at(open_source("one=list:x.txt + two=list:x.txt", root=str(folder)))

    hostile = [b"a.png 2147483647\n", b"../x.png 0\n", b"/a.png 0\n", b"a.png " + b"9" * 9000]
    return Target(run, [b"a.png 0\nb c.png 1\n", b"a.png\r\n"], hostile, of_bytes)


def _prepared(read: Callable[[], Any]) -> None:
    """All parts of a published set."""
    for images, labels in read().parts:
        assert len(images) and (labels is None or len(labels) == len(images))


def _idx(folder: Path) -> Target:
    import gzip

    from ood_jax.data.archives import read_idx

    def run(data: bytes) -> None:
        (folder / "x").write_bytes(data)
        _prepared(lambda: read_idx(folder / "x", None))

    def saying(*shape: int, data: bytes = b"") -> bytes:
        return bytes((0, 0, 8, 3)) + np.array(shape, ">u4").tobytes() + data

    good = saying(3, 4, 4, data=bytes(48))
    hostile = [saying(2**32 - 1, 100_000, 100_000), gzip.compress(saying(9, 2**31, 2**31))]
    hostile += [saying(2**32 - 1, 0, 0), gzip.compress(saying(9, 2**20, 2**12) + bytes(2**26))]
    return Target(run, [good, gzip.compress(good)], hostile, of_bytes)


def _cifar(folder: Path) -> Target:
    import gzip
    import tarfile

    from ood_jax.data.archives import read_cifar

    def run(data: bytes) -> None:
        (folder / "x.tar.gz").write_bytes(gzip.compress(data, 1) if data[:1] != b"\x1f" else data)
        _prepared(lambda: read_cifar(folder / "x.tar.gz", "cifar10", "test"))

    def tar(size: int) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, data in {"batches.meta.txt": b"a\nb", "test_batch.bin": bytes(size)}.items():
                info = tarfile.TarInfo(f"cifar/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    grown = gzip.compress(tar(3073 * 600_000), 1)  # 1.8 GB in 8 MB
    return Target(run, [tar(3073 * 2)], [grown], of_bytes)


def _svhn(folder: Path) -> Target:
    from scipy.io import savemat

    from ood_jax.data.archives import read_svhn

    def run(data: bytes) -> None:
        (folder / "x.mat").write_bytes(data)
        _prepared(lambda: read_svhn(folder / "x.mat"))

    seeds = []
    for packed in (True, False):
        arrays = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)}
        savemat(folder / "s.mat", arrays, do_compression=packed)
        seeds.append((folder / "s.mat").read_bytes())
    return Target(run, seeds, [], of_bytes)


def targets() -> dict[str, Callable[[Path], Target]]:
    """Name -> what makes the target in an empty folder."""
    from fuzz_results import RESULTS

    own = {
        "overrides": _overrides,
        "settings": _settings,
        "sources": _sources,
        "images": _images,
        "npz": _arrays,
        "npy": _npy,
        "list": _lists,
        "idx": _idx,
        "cifar": _cifar,
        "svhn": _svhn,
    }
    return own | RESULTS
