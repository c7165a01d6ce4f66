"""A registry for images that takes what is pushed to it and forgets it afterwards: the part of the protocol that a push needs."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry(ThreadingHTTPServer):
    """`manifests` by repository:tag, as they were pushed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def digest(self, reference: str) -> str:
        return digest(self.manifests[reference])


@contextmanager
def registry() -> Iterator[Registry]:
    with Registry() as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            served.shutdown()
            thread.join()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        found = self.path.rpartition("/")[2] in self.server.blobs
        self._answer(200 if found else 404)

    def do_POST(self) -> None:
        self._body()
        name = str(len(self.server.uploads))
        self.server.uploads[name] = b""
        self._answer(202, {"Location": f"{self.path.split('?')[0].rstrip('/')}/{name}"})

    def do_PATCH(self) -> None:
        name = self.path.split("?")[0].rpartition("/")[2]
        self.server.uploads[name] += self._body()
        told = {"Location": self.path, "Range": f"0-{max(len(self.server.uploads[name]) - 1, 0)}"}
        self._answer(202, told)

    def do_PUT(self) -> None:
        content = self._body()
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            self.server.manifests[f"{found[1]}:{found[2]}"] = content
            self._answer(201, {"Docker-Content-Digest": digest(content)})
            return
        whole = self.server.uploads[self.path.split("?")[0].rpartition("/")[2]] + content
        self.server.blobs[digest(whole)] = whole
        self._answer(201, {"Docker-Content-Digest": digest(whole)})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news."""
