"""Who we are to the API server: the service account of our pod, or a kubeconfig.

The official package reads both (client certificates, exec plugins, token files); all of it in a thread,
because it blocks. Tokens are asked for again every `REFRESH_SECONDS` and at once after a 401.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rerail_operator.shell.cluster import Unavailable

Read = TypeVar("Read")

REFRESH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach and trust the API server."""

    url: str
    tls: ssl.SSLContext | bool
    server_name: str | None = None
    proxy: str | None = None


class Credentials:
    """Loaded once, refreshed for ever. Raises Unavailable while there are none that can be read."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._configuration: Any = None
        self._access: Access | None = None
        self._headers: dict[str, str] = {}
        self._refreshed = 0.0
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Read everything from the start."""
        loaded = await _in_thread(_load, self._kubeconfig, self._context)
        self._configuration, self._access, self._headers = loaded
        self._refreshed = time.monotonic()

    @property
    def access(self) -> Access:
        if self._access is None:
            raise RuntimeError("credentials are used before load()")
        return self._access

    async def headers(self) -> dict[str, str]:
        """The Authorization header, if a token is what we have; never older than `REFRESH_SECONDS`."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS and not self._loading.locked():
            async with self._loading:
                self._headers = await _in_thread(_headers, self._configuration)
                self._refreshed = time.monotonic()
        return self._headers

    async def reload(self, refused: dict[str, str]) -> bool:
        """Read everything anew after a 401 to these headers. False: still the same, so no use in trying."""
        async with self._loading:
            before = self.access
            if self._headers == refused:
                await self.load()
        return self._headers != refused or (self.access is not before and not refused)


async def _in_thread(read: Callable[..., Read], *arguments: Any) -> Read:
    try:
        return await asyncio.to_thread(read, *arguments)
    # The official package's loaders raise whatever their files and plugins cause.
    except Exception as error:
        raise Unavailable(f"no usable credentials for the API server: {error}") from error


def read_configuration(kubeconfig: str | None = None, context: str | None = None) -> Any:
    """The official package's configuration of our pod or of a kubeconfig, read now; blocks.

    Raises whatever that package's loaders raise.
    """
    # Imported here: the package takes a second and some 90 MB, and `rerail run` has no use for it.
    from kubernetes.client.configuration import Configuration
    from kubernetes.config import incluster_config, kube_config

    from_pod: Callable[..., None] = incluster_config.load_incluster_config
    from_file: Callable[..., None] = kube_config.load_kube_config
    configuration = Configuration()
    in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not os.environ.get("KUBECONFIG")
    if in_pod and not kubeconfig:
        from_pod(client_configuration=configuration)
    else:
        # Named here, because the package looks at the variable once, when it is imported.
        files = kubeconfig or os.environ.get("KUBECONFIG") or None
        from_file(files, context, client_configuration=configuration)
    return configuration


def _load(kubeconfig: str | None, context: str | None) -> tuple[Any, Access, dict[str, str]]:
    configuration = read_configuration(kubeconfig, context)
    return configuration, _access(configuration), _headers(configuration)


def _headers(configuration: Any) -> dict[str, str]:
    settings = configuration.auth_settings().get("BearerToken")
    return {"Authorization": settings["value"].strip()} if settings and settings["value"] else {}


def _access(configuration: Any) -> Access:
    url = configuration.host.rstrip("/")
    proxy = configuration.proxy or None
    if not url.startswith("https:"):
        return Access(url, tls=True, proxy=proxy)
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:  # `insecure-skip-tls-verify`: the person's own word
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return Access(url, tls, configuration.tls_server_name or None, proxy)
