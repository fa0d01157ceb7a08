"""Sources on disk: folders of images, image lists, arrays."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from etils import epath

from ood_jax import npz
from ood_jax.data.decode import as_rgb, read_file
from ood_jax.data.source import Source, from_array
from ood_jax.place import is_remote, kind, names, reason, sizes, under
from ood_jax.untrusted import TEXT_BYTES, read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def open_folder(path: epath.Path, spec: str) -> Source:
    """All images under a folder, sorted by path; suffixes in any case, hidden files left out.

    Where all images lie in subfolders, those are the classes, in the order of their names;
    otherwise there are no labels.

    Raises:
      ValueError: no such folder, no image in it, or links by which a folder is reached twice.
    """
    if _kind(path, spec) != "folder":
        raise ValueError(f"{spec!r}: {path} is not a folder; give a folder of images")
    found = sorted(
        tuple(file.split("/"))
        for file in (_listed(path) if is_remote(path) else _walked(path, spec))
        if file.lower().endswith(SUFFIXES)
    )
    if not found:
        raise ValueError(
            f"{spec!r}: no image in {path}; it should hold {', '.join(SUFFIXES)} files"
        )
    flat = any(len(parts) == 1 for parts in found)
    classes = () if flat else tuple(sorted({parts[0] for parts in found}))
    number = {name: i for i, name in enumerate(classes)}
    labels = None if flat else np.array([number[parts[0]] for parts in found], np.int32)
    return _of_files(spec, path, ["/".join(parts) for parts in found], labels, classes)


def open_file(path: epath.Path, spec: str) -> Source:
    """One image.

    Raises:
      ValueError: no such file, or its name is not one of an image.
    """
    if _kind(path, spec) != "file" or path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{spec!r} is no folder, no image ({', '.join(SUFFIXES)}) and no source (folder:PATH,"
            " list:FILE, npz:FILE, ...): check the path"
        )
    return _of_files(spec, path.parent, [path.name], None, ())


def open_list(where: str, spec: str, root: str) -> Source:
    """The images of an OpenOOD list: a line is `relative/path label`; no label or -1 = none.

    where: FILE or FILE@FOLDER, both relative to `root`; paths are relative to FOLDER, else to
    `root`, else to the list's folder. A path may hold spaces: its label is a last whole number.
    OpenOOD's own reader ends a path at its first space, and knows lines that end in a dictionary.

    Raises:
      ValueError: no such file, an empty list, a line that is none or leads out of the folder, or
        paths that do not exist (the first is named, with their count).
    """
    file, at, images = where.rpartition("@")
    if not at or _kind(under(root, where), spec) == "file":
        file, images = where, ""
    path = under(root, file)
    if _kind(path, spec) != "file":
        raise ValueError(f"{spec!r}: {path} is not a file; give a list with a path a line")
    files, labels = _lines(path, spec)
    folder = under(root, images) if images or root else path.parent
    missing = _missing(folder, files)
    if missing:
        start = f"holds {images}" if images else "the list's paths start from"
        raise ValueError(
            f"{spec!r}: {len(missing)} of {len(files)} files are missing, first {missing[0]}, in"
            f" {folder}; set data.root to the folder that {start}, or write list:FILE@FOLDER"
        )
    return _of_files(spec, folder, files, None if (labels < 0).all() else labels.clip(-1), ())


def _kind(path: epath.Path, spec: str) -> str:
    """`place.kind`, where what cannot be read is a mistake of `spec`; no name is too long."""
    try:
        return kind(path)
    except OSError as error:
        if is_remote(path) and not isinstance(error, PermissionError):
            raise
        raise ValueError(f"{spec!r}: {path} cannot be read ({reason(error)})") from None


def _missing(folder: epath.Path, files: list[str]) -> list[str]:
    """Those of `files` that are not in `folder`; of a remote one its folders are listed."""
    if not is_remote(folder):
        prefix = f"{folder}{os.sep}"
        return [name for name in files if not os.path.isfile(prefix + name)]
    normal = {name: os.path.normpath(name) for name in files}
    parents = {os.path.dirname(name) for name in normal.values()}
    there = {os.path.join(parent, name) for parent in parents for name in names(folder / parent)}
    return [name for name in files if normal[name] not in there]


def _lines(path: epath.Path, spec: str) -> tuple[list[str], np.ndarray]:
    """The paths of a list and their labels, int32 [N]."""
    try:
        text = read_bytes(path, TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{spec!r}: {path} is not text in UTF-8; give a list") from None
    files, labels = [], []
    for line in filter(None, map(str.strip, text.split("\n"))):
        name, _, last = line.rpartition(" ")
        labelled = bool(name) and last.removeprefix("-").isdecimal() and len(last) < 20
        files.append(name.strip() if labelled else line)
        labels.append(int(last) if labelled else -1)
        if line.endswith("}") or labels[-1] > np.iinfo(np.int32).max:
            raise ValueError(
                f"{spec!r}: the line {line!r} of {path} is none; write `relative/path label` with"
                f" a whole number up to {np.iinfo(np.int32).max}"
            )
        way = PurePosixPath(files[-1])
        if ".." in way.parts or way.is_absolute():
            raise ValueError(
                f"{spec!r}: {files[-1]!r} in {path} leads out of the list's folder; name a folder"
                " that holds all images, list:FILE@FOLDER"
            )
    if not files:
        raise ValueError(f"{spec!r}: {path} is empty; write `relative/path label` on each line")
    return files, np.array(labels, np.int64).clip(-1).astype(np.int32)


def open_arrays(path: epath.Path, spec: str) -> Source:
    """An .npz with `images` uint8 [N, H, W, C] or [N, H, W] and, if it likes, `labels` int [N] and
    `classes` text [K]; or an .npy of such images, which stays on disk (memory-mapped).

    Raises:
      ValueError: no such file, not one of NumPy's, pickled objects, or arrays of another kind.
    """
    if _kind(path, spec) != "file":
        raise ValueError(f"{spec!r}: {path} is not a file; give an .npz or .npy of images")
    try:
        if path.suffix == ".npy":
            arrays = {"images": npz.mapped(path)}
        else:
            with npz.opened(path) as file:
                arrays = {k: file[k] for k in ("images", "labels", "classes") if k in file.names}
                keys = file.names
    except (OSError, ValueError) as error:
        if is_remote(path) and isinstance(error, OSError):
            raise
        raise ValueError(
            f"{spec!r}: {path} cannot be read ({error}); write it with numpy.savez, no objects"
        ) from None
    if "images" not in arrays:
        raise ValueError(f"{spec!r}: {path} has {', '.join(keys) or 'nothing'}; it needs `images`")
    return _of_arrays(spec, **arrays)


def _of_arrays(
    spec: str,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    classes: np.ndarray | None = None,
) -> Source:
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (
        grey or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    ):
        raise ValueError(
            f"{spec!r}: images are {images.dtype} {list(images.shape)}; they must be uint8"
            " [N, H, W] or [N, H, W, C] with C = 1, 3 or 4"
        )
    if images.size == 0:
        raise ValueError(
            f"{spec!r}: images is empty, {list(images.shape)}; it needs at least one image"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{spec!r}: labels are {labels.dtype} {list(labels.shape)}; they must be integers,"
            f" one for each of the {len(images)} images"
        )
    if labels is not None and labels.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"{spec!r}: the label {labels.max()}; use numbers up to {np.iinfo(np.int32).max}"
        )
    if classes is not None and classes.ndim != 1:
        raise ValueError(f"{spec!r}: classes are {list(classes.shape)}; give one name a class, [K]")
    names = () if classes is None else tuple(str(c) for c in classes)
    if names and labels is not None and labels.max() >= len(names):
        raise ValueError(
            f"{spec!r}: label {labels.max()} with {len(names)} classes; name every class or none"
        )
    if not grey and images.shape[3] == 3:
        return from_array(spec, images, labels, names)
    return Source(
        spec,
        len(images),
        lambda i: as_rgb(images[i], f"{spec} image {i}"),
        classes=names,
        read_labels=None if labels is None else labels.astype(np.int32).__getitem__,
    )


def _of_files(
    spec: str,
    folder: epath.Path,
    files: list[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
) -> Source:
    return Source(
        spec,
        len(files),
        lambda i: read_file(folder / files[i]),
        describe=files.__getitem__,
        classes=classes,
        read_labels=None if labels is None else labels.__getitem__,
    )


def _listed(path: epath.Path) -> Iterator[str]:
    """The files below a remote folder, as seen from there; hidden ones left out."""
    yield from (name for name in sizes(path) if "/." not in f"/{name}")


def _walked(path: epath.Path, spec: str) -> Iterator[str]:
    """The files below a folder, as seen from there; hidden ones left out, links followed.

    Each is there once: a link to a folder above has no end, and a few that fork have 2 to the many.
    """
    seen: dict[tuple[int, int], str] = {}
    for parent, folders, files in os.walk(path, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found = os.stat(parent)
        other = seen.setdefault((found.st_dev, found.st_ino), parent)
        if other != parent:
            raise ValueError(
                f"{spec!r}: {parent} and {other} are one folder by a link, and its images would"
                " count twice; remove the link"
            )
        inside = os.path.relpath(parent, path)
        yield from (
            os.path.normpath(os.path.join(inside, file))
            for file in files
            if not file.startswith(".")
        )
