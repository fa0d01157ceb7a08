"""gs:// in this process: etils and fsspec see the objects of a fake server, tensorstore asks it.

So runs on object storage are tested where gcsfs is not installed. What gcsfs itself does is seen in
test_storage.py, where it is."""

import io
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from etils.epath import backend
from fake_gcs import Store, served
from fsspec.registry import _registry


class Denied(Exception):
    """As a client of a storage raises: no OSError."""

    def __init__(self, code: int):
        super().__init__(f"refused, {code}")
        self.code = code


class Objects(fsspec.AbstractFileSystem):
    """The objects of `store`; folders are what names have in common, as on the real thing."""

    protocol = ("gs", "gcs")
    cachable = False
    store: Store

    def _ask(self, method: str, path: str) -> tuple[dict, str]:
        path = self._strip_protocol(path)
        self.store.asked.append((method, path))
        if code := self.store.refuse(method, path):
            raise Denied(code)
        bucket, _, name = path.partition("/")
        if bucket not in self.store.buckets:
            raise FileNotFoundError(path)
        return self.store.buckets[bucket], name

    def info(self, path, **_):
        objects, name = self._ask("GET", path)
        path = self._strip_protocol(path)
        if name in objects:
            data, generation, _ = objects[name]
            size = len(data)
            return {"name": path, "size": size, "type": "file", "generation": str(generation)}
        if not name or any(other.startswith(f"{name}/") for other in objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        objects, name = self._ask("GET", path)
        bucket = self._strip_protocol(path).partition("/")[0]
        start = f"{name}/" if name else ""
        below = sorted({n[len(start) :].split("/")[0] for n in objects if n.startswith(start)})
        if not below:
            return [self.info(path)] if detail else [self.info(path)["name"]]
        found = [f"{bucket}/{start}{one}" for one in below]
        return [self.info(one) for one in found] if detail else found

    def _open(self, path, mode="rb", **_):
        objects, name = self._ask("GET" if mode == "rb" else "POST", path)
        if mode == "rb":
            if name not in objects:
                raise FileNotFoundError(path)
            return io.BytesIO(objects[name][0])
        bucket = self._strip_protocol(path).partition("/")[0]
        return _Upload(lambda data: self.store.put(bucket, name, data))

    def rm(self, path, recursive=False, maxdepth=None):
        objects, name = self._ask("DELETE", path)
        below = [other for other in objects if recursive and other.startswith(f"{name}/")]
        gone = [*below, *([name] if name in objects else [])]
        if not gone:
            raise FileNotFoundError(path)
        for one in gone:
            del objects[one]

    def cp_file(self, path1, path2, **_):
        objects, name = self._ask("GET", path1)
        if name in objects:
            bucket, _, to = self._strip_protocol(path2).partition("/")
            self.store.put(bucket, to, objects[name][0])

    def created(self, path):
        raise NotImplementedError

    modified = created


class _Upload(io.BytesIO):
    def __init__(self, put):
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            self._put(self.getvalue())
        super().close()


@contextmanager
def objects(*buckets: str) -> Iterator[Store]:
    """gs:// is a fake store for as long as the context lasts."""
    with served(*buckets) as (store, env), pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        cloud, storage = types.ModuleType("google.cloud"), types.ModuleType("google.cloud.storage")
        storage.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: None)
        cloud.storage = storage
        patch.setitem(sys.modules, "google.cloud", cloud)
        patch.setitem(sys.modules, "google.cloud.storage", storage)
        own = type("Objects", (Objects,), {"store": store})
        for scheme in own.protocol:
            patch.setitem(_registry, scheme, own)
        clear = backend._FileSystemSpecBackend._get_filesystem.cache_clear
        clear()
        yield store
        clear()
