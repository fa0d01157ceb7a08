"""Places: files and folders, on a disk or on object storage (gs://BUCKET/..., s3://BUCKET/...).

All are etils' paths. What object storage does not have, folders, appending and moving, is not asked
of it here: objects are read and written whole, so each is there as it was or as it is now.
"""

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Else etils goes by TensorFlow where that is installed, whose errors are no OSErrors.
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec
from etils import epath

PACKAGES = {"gs": "gcs", "s3": "s3"}  # before :// -> the extra that installs the package for it
_URLS = tuple(f"{scheme}://" for scheme in PACKAGES)
# tensorstore and other libraries write past fsspec, so what it remembers of folders would be old.
for _kind in ("gs", "gcs", "s3"):
    fsspec.config.conf.setdefault(_kind, {}).setdefault("use_listings_cache", False)


def place(text: epath.PathLike) -> epath.Path:
    """The path that a flag or config means by `text`: ~ is one's home. Paths stay as they are.

    Raises:
      ValueError: ~NAME of nobody, storage of another kind, its package is missing, or no bucket.
    """
    if not isinstance(text, str):
        return epath.Path(text)
    if is_remote(text):
        return epath.Path(_checked(text))
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        name = text.split("/")[0]
        raise ValueError(f"{text}: {name} is nobody's home here; a folder of that name is ./{name}")
    return epath.Path(expanded)


def _checked(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme not in PACKAGES or not rest.split("/")[0]:
        raise ValueError(f"{url}: write gs://BUCKET/..., s3://BUCKET/... or a path on a disk")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(
            f"{url}: {scheme}:// needs one more package ({error}):"
            f" pip install 'ood_jax[{PACKAGES[scheme]}]'"
        ) from None
    return url


def under(root: str, where: str) -> epath.Path:
    """`where` as seen from the folder `root`, "" = from here.

    Raises:
      ValueError: as `place`.
    """
    return place(where) if is_remote(where) else place(root) / place(where)


def is_remote(path: epath.PathLike) -> bool:
    """Does it lie on object storage?"""
    return re.match(r"[A-Za-z][\w+.-]*://", os.fspath(path)) is not None


def absolute(path: epath.Path) -> epath.Path:
    """As seen from the root of its disk; what is remote is so always (etils' `resolve` errs)."""
    return path if is_remote(path) else epath.Path(os.path.abspath(path))


@contextmanager
def told(path: epath.PathLike) -> Iterator[None]:
    """Whatever a storage's client raises within becomes an OSError that names `path`.

    They share no class. Of a disk every error stays what it is.

    Raises:
      FileNotFoundError: it is not there. PermissionError: it may not be read or written.
      OSError: anything else.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(path) or str(error).startswith(_URLS):  # told already
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _kind_of(error)(f"{os.fspath(path)}: {reason}") from error


def _kind_of(error: Exception) -> type[OSError]:
    if isinstance(error, FileNotFoundError | PermissionError):
        return type(error)
    credentials = "Credentials" in type(error).__name__  # Google's and Amazon's: none are there
    forbidden = str(error).startswith("Forbidden")  # gcsfs
    return PermissionError if credentials or forbidden or _code(error) in (401, 403) else OSError


def _code(error: Exception) -> int | None:
    """The status of an HTTP answer, as the clients keep it."""
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else None


def reason(error: OSError) -> str:
    """What it says, without number and path where it is the system's."""
    return error.strerror or str(error) or type(error).__name__


def kind(path: epath.PathLike) -> str:
    """What is at `path`: "file", "folder", "other" (a pipe, a device) or "" = nothing.

    Raises:
      OSError: that cannot be told, such as where a folder above may not be read.
    """
    if is_remote(path):
        found = _info(path)
        return "" if found is None else {"directory": "folder"}.get(found["type"], "file")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name with a NUL
        return ""
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return ""
        raise
    regular = "file" if stat.S_ISREG(mode) else "other"
    return "folder" if stat.S_ISDIR(mode) else regular


def stamp(path: epath.PathLike) -> list[Any] | None:
    """[what changes when a file is written anew, bytes]; None = nothing is there.

    Raises:
      OSError: that cannot be told.
    """
    if not is_remote(path):
        if not kind(path):
            return None
        found = os.stat(path)
        return [found.st_mtime_ns, found.st_size]
    info = _info(path)
    if info is None:
        return None
    return [str(info.get("generation") or info.get("ETag") or ""), info.get("size") or 0]


def _info(path: epath.PathLike) -> dict[str, Any] | None:
    storage, name = _storage(path)
    try:
        with told(path):
            return storage.info(name)
    except FileNotFoundError:
        return None


def sizes(folder: epath.PathLike) -> dict[str, int]:
    """The bytes of every file below `folder`, by its path from there; {} = there is none.

    Of object storage one request for a thousand files.

    Raises:
      OSError: it cannot be listed.
    """
    if not is_remote(folder):
        walk = os.walk(folder, onerror=_unless_absent)
        found = [os.path.join(base, file) for base, _, files in walk for file in files]
        return {os.path.relpath(file, folder): os.path.getsize(file) for file in found}
    storage, name = _storage(folder)
    with told(folder):
        listed = storage.find(name, detail=True)
    start = len(name.rstrip("/")) + 1
    return {file[start:]: one["size"] for file, one in listed.items() if not file.endswith("/")}


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def names(folder: epath.PathLike) -> list[str]:
    """What lies in `folder`, files and folders; [] = there is no such folder.

    Raises:
      OSError: it cannot be listed.
    """
    try:
        if not is_remote(folder):
            return os.listdir(folder)
        storage, name = _storage(folder)
        with told(folder):
            found = storage.ls(name, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    own = name.rstrip("/")  # which some list as well
    return [os.path.basename(one.rstrip("/")) for one in found if one.rstrip("/") != own]


def holding(root: epath.Path, name: str) -> list[epath.Path]:
    """The folders at and below `root` in which a folder `name` lies, sorted.

    Raises:
      OSError: object storage cannot be listed; folders of a disk that may not be read are left out.
    """
    out = []
    storage, start = _storage(root) if is_remote(root) else (None, "")
    with told(root):
        for base, folders, _ in os.walk(root) if storage is None else storage.walk(start):
            if name in folders:
                folders.remove(name)  # it is not looked into
                out.append(epath.Path(base if storage is None else storage.unstrip_protocol(base)))
    return sorted(out)


def read(path: epath.PathLike, limit: int) -> bytes:
    """The first `limit` bytes of a remote file, in one request.

    Raises:
      OSError: it cannot be read.
    """
    storage, name = _storage(path)
    with told(path):
        try:
            return storage.cat_file(name, start=0, end=limit)
        except Exception:
            if storage.info(name)["size"] == 0:  # of which no range can be asked
                return b""
            raise


@contextmanager
def local(path: epath.Path) -> Iterator[epath.Path]:
    """A file on disk with what is at `path`: itself, or a copy for as long as the context lasts.

    Raises:
      OSError: it cannot be read, or the disk for temporary files is full.
    """
    if not is_remote(path):
        yield path
        return
    storage, name = _storage(path)
    with tempfile.TemporaryDirectory() as folder:
        near = epath.Path(folder) / path.name
        with told(path):
            storage.get_file(name, os.fspath(near))
        yield near


def send(near: epath.PathLike, path: epath.Path) -> None:
    """Copies a file on disk to a remote place, where it is seen once it is whole.

    Raises:
      OSError: it cannot be written.
    """
    storage, name = _storage(path)
    with told(path):
        storage.put_file(os.fspath(near), name)


def make_folder(path: epath.Path) -> None:
    """Makes the folder on a disk, and those above it; object storage has none.

    Raises:
      OSError: it cannot be made.
    """
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove(path: epath.Path) -> None:
    """Removes a file, if it is there.

    Raises:
      OSError: it cannot be removed.
    """
    with told(path):
        path.unlink(missing_ok=True)


def _storage(path: epath.PathLike) -> tuple[Any, str]:
    """The file system of a remote path, and what it calls that."""
    with told(path):
        return fsspec.core.url_to_fs(os.fspath(path))
