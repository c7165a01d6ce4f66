"""The Cluster port: all that Rerail asks of Kubernetes, and the ways it can fail.

Two adapters: `kube` (the API server) and `memory` (`rerail run`, tests), and one contract suite for both.
Objects cross the port as plain JSON dicts; `observe.py` parses them into slim records, once.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Object = dict[str, Any]


class ClusterError(Exception):
    """Base of every failure of a call to the cluster."""


class NotFound(ClusterError):
    """The object is not there (404), or not with that UID."""


class AlreadyExists(ClusterError):
    """An object of that name exists (409 on create): look, and compare owner and UID."""


class Conflict(ClusterError):
    """The object has changed since it was read (409 on a guarded write)."""


class Rejected(ClusterError):
    """The server refuses the request as it stands (400, 403, 422): report its words, do not repeat.

    `retriable` is True for quota and other refusals that can pass without a change of the object.
    """

    def __init__(self, message: str, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class Forbidden(Rejected):
    """RBAC says no: the message names verb and resource."""


class Unavailable(ClusterError):
    """Throttled, 5xx, dropped or timed out: it may or may not have happened. Observe again, then repeat."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Expired(ClusterError):
    """The watch's resourceVersion is too old (410): list again."""


class Kind(StrEnum):
    POD = "Pod"
    NODE = "Node"
    JOB = "TrainingJob"
    EVENT = "Event"
    CONFIG_MAP = "ConfigMap"
    REVISION = "ControllerRevision"
    LEASE = "Lease"
    SECRET = "Secret"  # noqa: S105 - the name of a kind


class Change(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class Listing:
    items: list[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    change: Change
    object: Object


class Cluster(Protocol):
    """All calls are coroutines; every failure is a ClusterError."""

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        """Create; strict field validation. Raises AlreadyExists, Rejected, Unavailable."""
        ...

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises NotFound."""
        ...

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        """Replace the object (or only its status), guarded by its resourceVersion; the server's reply.

        Raises Conflict, NotFound, Rejected.
        """
        ...

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        """JSON merge patch. A `metadata.uid` / `metadata.resourceVersion` in it is a precondition."""
        ...

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete with UID precondition. Raises NotFound (also when the UID differs)."""
        ...

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        """Delete all that match the labels."""
        ...

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        """All namespaces; label and field selectors in Kubernetes' own syntax."""
        ...

    def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`, bookmarks included. Ends cleanly at the server's wish.

        Raises Expired, Unavailable.
        """
        ...
