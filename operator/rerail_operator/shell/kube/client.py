"""KubeCluster: the Cluster port, and typed streams beside it, on a real API server."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from rerail_operator.shell.cluster import Change, Kind, Listing, Object, Unavailable, WatchEvent
from rerail_operator.shell.kube.credentials import Credentials
from rerail_operator.shell.kube.errors import Call
from rerail_operator.shell.kube.limiter import Limiter
from rerail_operator.shell.kube.resources import RESOURCES
from rerail_operator.shell.kube.session import Lane, Request, Session
from rerail_operator.shell.kube.watch import Reader, lines
from rerail_operator.shell.streams import Seen, Selection, Snapshot

Record = TypeVar("Record")

PAGE_SIZE = 500
WATCH_SECONDS = (300, 600)
"""The server ends a watch after a time drawn from here, so that not all come back at the same moment."""

METHODS = {
    "create": "POST",
    "get": "GET",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}
MERGE_PATCH = "application/merge-patch+json"


class KubeCluster:
    """`async with KubeCluster.from_environment() as cluster:`"""

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def from_environment(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """Our pod's service account; outside a pod, or when one is named, a kubeconfig."""
        return cls(Session(Credentials(kubeconfig, context)))

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(kind, error, trace)

    @property
    def limiter(self) -> Limiter:
        """For metrics: window and running requests."""
        return self._session.limiter

    async def fetch(self, path: str) -> Object:
        """GET any absolute API path that answers JSON, such as /openid/v1/jwks."""
        return _object(await self._session.request(Request(Call("get", path), "GET", path)))

    # The Cluster port.

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        path = RESOURCES[kind].path(namespace)
        return await self._object(replace(_request(kind, "create", path, _whole(kind, obj)), query=query))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._object(_request(kind, "get", RESOURCES[kind].path(namespace, name)))

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        path = RESOURCES[kind].path(namespace, obj["metadata"]["name"], "status" if status else "")
        return await self._object(_request(kind, "update", path, _whole(kind, obj)))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        return await self._object(_request(kind, "patch", RESOURCES[kind].path(namespace, name), patch))

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        path = RESOURCES[kind].path(namespace, name)
        await self._session.request(_request(kind, "delete", path, _delete_options(uid, grace_seconds)))

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        resource = RESOURCES[kind]
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        request = _request(
            kind, "deletecollection", resource.path(namespace), _delete_options(None, grace_seconds)
        )
        query = {"labelSelector": selector}
        await self._session.request(replace(request, query=query, lane=Lane.SLOW, wants_reply=False))

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        snapshot = await self.list_as(Selection(kind, labels, fields), dict, _same)
        return Listing(snapshot.objects, snapshot.version)

    async def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        selection = Selection(kind, labels, fields)
        opening = True
        async for seen in self.watch_as(selection, resource_version, dict, _same):
            if not opening:
                yield WatchEvent(seen.change, seen.object or {"metadata": {"resourceVersion": seen.version}})
            opening = False

    # Typed streams, for informers.

    async def list_as(
        self, selection: Selection, model: type[Any], record: Callable[[Any], Record]
    ) -> Snapshot[Record]:
        """The whole list, page by page, each decoded and let go before the next one comes."""
        call = Call("list", RESOURCES[selection.kind].plural)
        reader = Reader(call, model, record)
        objects: list[Record] = []
        query = _selectors(selection) | {"limit": str(PAGE_SIZE)}
        while True:
            request = Request(call, "GET", RESOURCES[selection.kind].path(), query, lane=Lane.SLOW)
            records, version, more = reader.page(await self._session.request(request))
            objects.extend(records)
            if not more:
                return Snapshot(objects, version)
            query["continue"] = more
            await asyncio.sleep(0)

    async def watch_as(
        self, selection: Selection, version: str, model: type[Any], record: Callable[[Any], Record]
    ) -> AsyncIterator[Seen[Record]]:
        """The first event is a bookmark of our own: the server has accepted the watch."""
        call = Call("watch", RESOURCES[selection.kind].plural)
        reader = Reader(call, model, record)
        query = _selectors(selection) | {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311 - jitter, not a secret
        }
        request = Request(call, "GET", RESOURCES[selection.kind].path(), query)
        async with self._session.stream(request) as content:
            # A resource without any event since the API server's start gets no bookmarks from it either.
            yield Seen(Change.BOOKMARK, version)
            async for line in lines(content.iter_any(), call):
                if (seen := reader.event(line)) is not None:
                    yield seen

    async def _object(self, request: Request) -> Object:
        return _object(await self._session.request(request))


def _request(kind: Kind, verb: str, path: str, body: Object | None = None) -> Request:
    return Request(
        Call(verb, RESOURCES[kind].plural + ("/status" if path.endswith("/status") else "")),
        METHODS[verb],
        path,
        body=None if body is None else msgspec.json.encode(body),
        content_type=MERGE_PATCH if verb == "patch" else "application/json",
        lane=Lane.LEASE if kind is Kind.LEASE else Lane.BULK,
    )


def _whole(kind: Kind, obj: Object) -> Object:
    return {"apiVersion": RESOURCES[kind].api_version, "kind": kind.value, **obj}


def _object(body: bytes) -> Object:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Unavailable(f"the API server's reply cannot be read: {error}") from error


def _delete_options(uid: str | None, grace_seconds: int | None) -> Object:
    options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    if uid is not None:
        options["preconditions"] = {"uid": uid}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    return options


def _selectors(selection: Selection) -> dict[str, str]:
    chosen = {"labelSelector": selection.labels, "fieldSelector": selection.fields}
    return {name: selector for name, selector in chosen.items() if selector}


def _same(obj: Object) -> Object:
    return obj
