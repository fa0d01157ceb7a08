"""A small server of Google Cloud Storage's JSON API on this machine, for gcsfs, tensorstore and
google-cloud-storage. Objects lie in memory; nothing is checked that these do not rely on."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

PAGE = 1000


class Store:
    """The buckets of one server: {bucket: {name: (bytes, generation, time)}}.

    `refuse(method, path)` -> status, 0 = answer: what tests make fail. `asked`: (method, path) of
    every request.
    """

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, tuple[bytes, int, str]]] = {b: {} for b in buckets}
        self.asked: list[tuple[str, str]] = []
        self.refuse = lambda method, path: 0
        self.lock = threading.Lock()
        self.uploads: dict[str, tuple[str, str, bytes]] = {}
        self._generation = 0

    def put(self, bucket: str, name: str, data: bytes) -> tuple[bytes, int, str]:
        """Takes the place of the object `name`, whole."""
        with self.lock:
            self._generation += 1
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{self._generation:06}Z"
            self.buckets[bucket][name] = (data, self._generation, now)
            return self.buckets[bucket][name]

    def upload_folder(self, bucket: str, folder, prefix: str) -> None:
        """Puts every file below `folder` under `prefix`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def download_folder(self, bucket: str, prefix: str, folder) -> None:
        """Writes every object under `prefix` below `folder`."""
        for name, (data, _, _) in list(self.buckets[bucket].items()):
            if name.startswith(f"{prefix}/") and not name.endswith("/"):
                path = folder / name.removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


@contextmanager
def served(*buckets: str) -> Iterator[tuple[Store, dict[str, str]]]:
    """(store, the environment variables by which clients find it)."""
    store = Store(*buckets)
    handler = type("Handler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield (
            store,
            {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore's
                "GOOGLE_CLOUD_PROJECT": "none",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask Google itself by gRPC
                "NO_PROXY": "127.0.0.1",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Clients hang up when they have heard enough; any other error is one of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, *_) -> None:
        pass

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query))
        self.body = self._read()
        self.store.asked.append((method, self.path))
        if status := self.store.refuse(method, self.path):
            return self._error(status)
        for verb, pattern, act in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if verb == method and match:
                return act(self, *(unquote(group) for group in match.groups()))
        self._error(501)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str):
        self.send_response(status)
        if status != 304:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, found: dict) -> None:
        self._send(200, json.dumps(found).encode())

    def _error(self, status: int) -> None:
        said = {404: "Not Found", 403: "denied: no access to this bucket"}.get(status, "no")
        self._send(status, json.dumps({"error": {"code": status, "message": said}}).encode())

    def _described(self, bucket: str, name: str) -> dict:
        data, generation, when = self.store.buckets[bucket][name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "timeCreated": when,
            "updated": when,
        }

    def bucket(self, bucket: str) -> None:
        if bucket not in self.store.buckets:
            return self._error(404)
        self._json({"kind": "storage#bucket", "name": bucket, "id": bucket})

    def list(self, bucket: str) -> None:
        if bucket not in self.store.buckets:
            return self._error(404)
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        names, folders = [], set()
        for name in sorted(self.store.buckets[bucket]):
            if not name.startswith(prefix) or name < self.query.get("startOffset", ""):
                continue
            if "endOffset" in self.query and name >= self.query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        start = int(self.query.get("pageToken", 0))
        stop = start + min(int(self.query.get("maxResults", PAGE)), PAGE)
        found: dict = {"kind": "storage#objects"}
        if names[start:stop]:
            found["items"] = [self._described(bucket, name) for name in names[start:stop]]
        if folders and not start:
            found["prefixes"] = sorted(folders)
        if names[stop:]:
            found["nextPageToken"] = str(stop)
        self._json(found)

    def get(self, bucket: str, name: str) -> None:
        held = self.store.buckets.get(bucket, {}).get(name)
        if held is None:
            return self._error(404)
        data, generation, _ = held
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return self._send(304)
        if self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._error(412)
        if self.query.get("alt") != "media":
            return self._json(self._described(bucket, name))
        kind, headers = "application/octet-stream", {"x_goog_generation": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(200, data, kind, **headers)
        size = len(data)
        first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            return self._error(416)
        headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self._send(206, data[first : last + 1], kind, **headers)

    def upload(self, bucket: str) -> None:
        if bucket not in self.store.buckets:
            return self._error(404)
        if "upload_id" in self.query:
            return self.resume(bucket)
        kind, name = self.query["uploadType"], self.query.get("name", "")
        if kind == "resumable":
            number = str(len(self.store.uploads))
            name = name or json.loads(self.body)["name"]
            self.store.uploads[number] = (bucket, name, b"")
            host = f"http://{self.headers['Host']}/upload/storage/v1/b/{quote(bucket)}/o"
            return self._send(200, Location=f"{host}?uploadType=resumable&upload_id={number}")
        data = self.body
        if kind == "multipart":
            edge = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()
            _, about, held, _ = data.split(b"--" + edge)
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", held, maxsplit=1)[1]
            data = data.removesuffix(b"\n").removesuffix(b"\r")
        self._put(bucket, name, data)

    def _put(self, bucket: str, name: str, data: bytes) -> None:
        with self.store.lock:
            now = self.store.buckets[bucket].get(name, (b"", 0, ""))[1]
        if int(self.query.get("ifGenerationMatch", now)) != now:
            return self._error(412)
        self.store.put(bucket, name, data)
        self._json(self._described(bucket, name))

    def resume(self, bucket: str) -> None:
        number = self.query["upload_id"]
        _, name, before = self.store.uploads[number]
        data = before + self.body
        total = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
        if total == "*" or (total.isdecimal() and int(total) > len(data)):
            self.store.uploads[number] = (bucket, name, data)
            return self._send(308, Range=f"bytes=0-{len(data) - 1}")
        self._put(bucket, name, data)

    def delete(self, bucket: str, name: str) -> None:
        with self.store.lock:
            held = self.store.buckets.get(bucket, {}).get(name)
            wanted = self.query.get("ifGenerationMatch")
            if held is None:
                return self._error(404)
            if wanted not in (None, str(held[1])):
                return self._error(412)
            del self.store.buckets[bucket][name]
        self._send(204)

    def copy(self, bucket: str, name: str, to_bucket: str, to: str) -> None:
        held = self.store.buckets.get(bucket, {}).get(name)
        if held is None or to_bucket not in self.store.buckets:
            return self._error(404)
        self.store.put(to_bucket, to, held[0])
        self._json({"kind": "storage#rewriteResponse", "done": True})


_B = "/b/([^/]+)"
_ROUTES = (
    ("GET", f"/storage/v1{_B}", _Handler.bucket),
    ("GET", f"/storage/v1{_B}/o/?", _Handler.list),
    ("GET", f"(?:/download)?/storage/v1{_B}/o/([^/]+)", _Handler.get),
    ("POST", f"/upload/storage/v1{_B}/o", _Handler.upload),
    ("PUT", f"/upload/storage/v1{_B}/o", _Handler.resume),
    ("DELETE", f"/storage/v1{_B}/o/([^/]+)", _Handler.delete),
    ("POST", f"/storage/v1{_B}/o/([^/]+)/(?:rewriteTo|copyTo){_B}/o/([^/]+)", _Handler.copy),
)
