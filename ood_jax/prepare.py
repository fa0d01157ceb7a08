"""Imports a published data set into one .npz that the source `npz:FILE` reads.

python -m ood_jax.prepare idx train-images-idx3-ubyte.gz --out=fashion_train.npz
python -m ood_jax.prepare cifar10 cifar-10-binary.tar.gz --split=test --out=cifar10_test.npz
python -m ood_jax.prepare cifar100 cifar-100-binary.tar.gz --split=test --out=cifar100_test.npz
python -m ood_jax.prepare svhn test_32x32.mat --out=svhn_test.npz
python -m ood_jax.prepare folder dtd/images --size=64 --out=textures.npz
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ood_jax import command

KINDS = ("idx", "cifar10", "cifar100", "svhn", "folder")


def prepare(
    kind: str,
    path: Path,
    out: Path,
    *,
    split: str = "train",
    size: int = 0,
    labels: Path | None = None,
    force: bool = False,
) -> int:
    """Writes images uint8 [N, H, W, C] or [N, H, W], labels int64 [N] and classes; returns N.

    split: of CIFAR archives. size: px of folders' images. labels: of idx files, see
    `archives.read_idx`. A labels or classes array that the set does not have is left out. The file
    appears under its name only when it is whole.

    Raises:
      ValueError: the input cannot be read as `kind`, or `out` exists and `force` is not set.
    """
    from ood_jax.data import archives

    if out.suffix != ".npz":
        raise ValueError(f"--out={out}: the name must end in .npz")
    if out.exists() and not force:
        raise ValueError(f"{out} exists: add --force to overwrite it, or choose another --out")
    if not out.parent.is_dir():
        raise ValueError(f"--out={out}: no folder {out.parent}; create it first")
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the downloaded {kind} file or folder")
    if kind == "idx":
        blocks = archives.read_idx(path, labels)
    elif kind in ("cifar10", "cifar100"):
        blocks = archives.read_cifar(path, kind, split)
    elif kind == "svhn":
        blocks = archives.read_svhn(path)
    else:
        blocks = archives.read_folder(path, size)
    return _write(blocks, path, out)


def _write(blocks: Any, path: Path, out: Path) -> int:
    """Streams the images through a temporary file, as an array's header needs their number."""
    shape: tuple[int, ...] = ()
    labels: list[np.ndarray] = []
    count = 0
    with tempfile.TemporaryFile(dir=out.parent) as rows:
        for images, label in _progress(blocks.parts, blocks.total):
            if shape and images.shape[1:] != shape:
                raise ValueError(
                    f"{path} has images of {list(shape)} and {list(images.shape[1:])}:"
                    " give --size=PIXELS to bring them to one size"
                )
            shape = images.shape[1:]
            rows.write(np.ascontiguousarray(images).tobytes())
            count += len(images)
            labels += [] if label is None else [label]
        if count == 0:
            raise ValueError(f"{path}: none of its {blocks.total} images can be read")
        rows.seek(0)
        extra = {"labels": np.concatenate(labels)} if labels else {}
        if blocks.classes:
            extra["classes"] = np.array(blocks.classes)
        _zip(rows, (count, *shape), extra, out)
    if count < blocks.total:
        print(f"{path}: left out {blocks.total - count} corrupt images", file=sys.stderr)
    return count


def _zip(rows: Any, shape: tuple[int, ...], extra: dict[str, np.ndarray], out: Path) -> None:
    part = out.with_name(out.name + ".part")
    try:
        with zipfile.ZipFile(part, "w") as file:
            with file.open("images.npy", "w", force_zip64=True) as entry:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                shutil.copyfileobj(rows, entry, 1 << 20)
            for name, array in extra.items():
                with file.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _progress(parts: Iterable[Any], total: int) -> Iterable[Any]:
    if not sys.stderr.isatty():
        yield from parts
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=" images", delay=2.0) as bar:
        for part in parts:
            yield part
            bar.update(len(part[0]))


def main(argv: list[str] | None = None) -> int:
    """The command line; 2 = a one-line error was printed."""
    parser = argparse.ArgumentParser(
        "python -m ood_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("input", type=Path, help="the downloaded file, or the folder")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="cifar only")
    parser.add_argument("--size", type=int, default=0, help="px, folder only; 0 = as they are")
    parser.add_argument("--labels", type=Path, help="idx only; default: the file beside INPUT")
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    a = parser.parse_args(argv)
    try:
        if a.size < 0:
            raise ValueError(f"--size={a.size}: give a positive number of pixels, or 0")
        options = {"split": a.split, "size": a.size, "labels": a.labels, "force": a.force}
        count = prepare(a.kind, a.input, a.out, **options)
    except (ValueError, OSError) as error:
        print("error:", command.said(error), file=sys.stderr)
        return 2
    print(f"{a.out}: {count} images; read it as npz:{a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
