"""A plain client of the API server for the rig itself: one keep-alive connection per thread.

It authenticates as the administrator. Tests may use it for bulk work; the operator never does.
"""

import http.client
import json
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .errors import RigError
from .pki import Identity


class ApiError(RigError):
    """The API server answered with an error status."""

    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        self.status, self.body = status, body
        super().__init__(f"{method} {path}: {status} {body[:500]}")


@dataclass
class ApiClient:
    """Talks to one API server; safe to share between threads."""

    url: str
    context: ssl.SSLContext
    _local: threading.local = field(default_factory=threading.local)
    _open: list[http.client.HTTPSConnection] = field(default_factory=list)

    @classmethod
    def for_identity(cls, url: str, authority: str, identity: Identity) -> "ApiClient":
        """A client that trusts `authority` (a file) and presents a certificate."""
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(identity.certificate, identity.key)
        return cls(url, context)

    def get(self, path: str) -> Any:
        """The decoded JSON at `path` (plain text where it is not JSON)."""
        return self.request("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Create an object."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """Apply a JSON merge patch."""
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> Any:
        """Delete an object or a collection."""
        return self.request("DELETE", path)

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, kind: str = "application/json"
    ) -> Any:
        """One request; a connection that went stale is replaced once. Raises ApiError, or OSError if nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Accept": "application/json, */*"}
        connection = self._connection()
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
        except (http.client.HTTPException, ConnectionError):
            connection.close()  # it reconnects by itself; the server had closed an idle connection
            connection.request(method, path, data, headers)
            response = connection.getresponse()
        text = response.read().decode()
        if response.status >= 300:
            raise ApiError(method, path, response.status, text)
        return json.loads(text) if "json" in response.headers.get_content_type() else text

    def close(self) -> None:
        """Close the connections of all threads; a later request opens a new one."""
        while self._open:
            self._open.pop().close()
        self._local = threading.local()

    def _connection(self) -> http.client.HTTPSConnection:
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            parts = urlsplit(self.url)
            assert parts.hostname is not None
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, context=self.context, timeout=30
            )
            self._local.connection = connection
            self._open.append(connection)
        return connection
