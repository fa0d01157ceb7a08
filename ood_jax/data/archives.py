"""Data sets in the formats they are published in, read as they stream by, nothing unpickled."""

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ood_jax.data.decode import PIXELS, fit
from ood_jax.data.files import open_folder
from ood_jax.data.source import CorruptImage
from ood_jax.npz import BROKEN

CHUNK = 1_000  # images read at once
CHUNK_BYTES = 256 * 1024**2  # at most
TIMES = 1_032  # what deflate can unfold a byte to; an idx of black images comes near
TAR_BYTES = 1024**3  # unfolded; CIFAR's have 0.19 GB
SVHN_BYTES = 4 * 1024**3  # of images; the largest split has 1.6 GB
UNREADABLE = (OSError, EOFError, zlib.error)

Part = tuple[np.ndarray, np.ndarray | None]


class Blocks(NamedTuple):
    """A set in parts: (images uint8 [n, H, W, C] or [n, H, W], labels int64 [n] or None), all of
    one image size; classes: names, () = unknown; total: images, for the bar."""

    parts: Iterator[Part]
    classes: tuple[str, ...]
    total: int


def read_idx(path: Path, labels: Path | None) -> Blocks:
    """An idx file of images (MNIST and its kin), gzipped or not, and one of labels. Without
    `labels`, the file beside it named by the same pattern (images-idx3 -> labels-idx1), if any.

    Raises:
      ValueError: not an idx file of bytes, cut short, or another number of labels.
    """
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None and beside != path and beside.is_file():
        labels = beside
    with _idx(path, 3) as (_, shape):
        total, pixels = shape[0], shape[1] * shape[2]
    _check_claim(path, total, pixels)
    known = None
    if labels is not None:
        with _idx(labels, 1) as (file, count):
            if count[0] != total:
                raise ValueError(f"{labels} has {count[0]} labels for {total} images of {path}")
            known = np.frombuffer(_exactly(file, count[0], labels), np.uint8).astype(np.int64)

    def parts() -> Iterator[Part]:
        with _idx(path, 3) as (file, shape):
            step = min(CHUNK, CHUNK_BYTES // pixels)
            for start in range(0, total, step):
                stop = min(start + step, total)
                data = _exactly(file, (stop - start) * pixels, path)
                images = np.frombuffer(data, np.uint8).reshape(-1, *shape[1:])
                yield images, None if known is None else known[start:stop]

    return Blocks(parts(), (), total)


def read_cifar(path: Path, kind: str, split: str) -> Blocks:
    """One split of the *binary version* of "cifar10" or "cifar100" (fine labels), a .tar.gz.

    Raises:
      ValueError: another archive (the Python and MATLAB versions hold pickles or objects).
    """
    first, names_file, label_bytes = {
        ("cifar10", "train"): ("data_batch_", "batches.meta.txt", 1),
        ("cifar10", "test"): ("test_batch", "batches.meta.txt", 1),
        ("cifar100", "train"): ("train", "fine_label_names.txt", 2),
        ("cifar100", "test"): ("test", "fine_label_names.txt", 2),
    }[kind, split]
    row = label_bytes + 3 * 32 * 32
    classes: tuple[str, ...] = ()
    batches: list[tarfile.TarInfo] = []
    try:
        _check_unfolded(path)
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name == names_file:
                    classes = tuple(_member(archive, member).decode("ascii").split())
                elif name.startswith(first) and name.endswith(".bin"):
                    batches.append(member)
    except (tarfile.TarError, ValueError, OverflowError, *UNREADABLE) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a whole tar archive ({reason}); give {kind}'s .tar.gz"
        ) from None
    if not batches or not classes:
        raise ValueError(
            f"{path} is not the binary version of {kind}: download the binary version (other"
            " versions hold Python pickles, which can run code and are never read)"
        )

    def parts() -> Iterator[Part]:
        with tarfile.open(path, "r:gz") as archive:
            for member in sorted(batches, key=lambda m: m.name):
                rows = np.frombuffer(_member(archive, member), np.uint8)
                if len(rows) % row:
                    raise ValueError(f"{path}: {member.name} is cut short; download it again")
                rows = rows.reshape(-1, row)
                images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield images, rows[:, label_bytes - 1].astype(np.int64)

    return Blocks(parts(), classes, sum(member.size // row for member in batches))


def read_svhn(path: Path) -> Blocks:
    """A cropped-digits .mat of SVHN; its label 10 is the digit 0.

    Raises:
      ValueError: not such a file.
    """
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        claimed = [math.prod(shape) for _, shape, _ in whosmat(path)]
        if max(claimed, default=0) > SVHN_BYTES:
            raise ValueError(f"an array of {max(claimed):,} numbers")
        arrays = loadmat(path, variable_names=("X", "y"))
        images, labels = arrays["X"].transpose(3, 0, 1, 2), arrays["y"].ravel().astype(np.int64)
        if images.ndim != 4 or images.dtype != np.uint8 or len(labels) != len(images):
            raise ValueError(f"images {images.dtype} {list(images.shape)}, {len(labels)} labels")
    except (MatReadError, *BROKEN) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a cropped-digits SVHN file ({reason}); give train_32x32.mat or its like"
        ) from None
    parts = (
        (images[s : s + CHUNK], labels[s : s + CHUNK] % 10) for s in range(0, len(labels), CHUNK)
    )
    return Blocks(parts, tuple("0123456789"), len(labels))


def read_folder(path: Path, size: int) -> Blocks:
    """A folder as `files.open_folder` reads it; size > 0 = shrunk and cut to size x size.

    Corrupt images are left out.

    Raises:
      ValueError: no image; while it streams, size 0 and images of several sizes.
    """
    source = open_folder(path, f"folder:{path}")
    labels = source.labels

    def parts() -> Iterator[Part]:
        for i in range(len(source)):
            try:
                image = fit(source.image(i), size) if size else source.image(i)
            except CorruptImage:
                continue
            yield image[None], None if labels is None else labels[i : i + 1].astype(np.int64)

    return Blocks(parts(), source.classes, len(source))


def _check_claim(path: Path, images: int, pixels: int) -> None:
    """Is there room in the file for as many as its header says?"""
    if images * pixels == 0 or pixels > PIXELS or images * pixels > TIMES * path.stat().st_size:
        raise ValueError(
            f"{path} is damaged: its header says {images:,} images of {pixels:,} pixels, its size"
            f" {path.stat().st_size:,} bytes; download it again"
        )


@contextmanager
def _idx(path: Path, axes: int) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """An idx file of bytes, opened behind its header, and its shape."""
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); give an idx file") from None
    opened: Any = gzip.open if zipped else open
    with opened(path, "rb") as file:
        if _exactly(file, 4, path) != bytes((0, 0, 8, axes)):
            raise ValueError(
                f"{path} is not an idx file of bytes with {axes} axes; give such a one"
            )
        yield file, tuple(np.frombuffer(_exactly(file, 4 * axes, path), ">u4").tolist())


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    try:
        data = file.read(count)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from None
    if len(data) != count:
        raise ValueError(f"{path} is cut short; download it again")
    return data


def _check_unfolded(path: Path) -> None:
    """Refuses a bomb: tarfile takes what a header says to be large at one go."""
    left = TAR_BYTES
    with gzip.open(path, "rb") as file:
        while block := file.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise ValueError(f"it unfolds to more than {TAR_BYTES:,} bytes")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
