"""The one place where the API server's answers become errors of the Cluster port."""

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from rerail_operator.shell.cluster import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Expired,
    Forbidden,
    NotFound,
    Rejected,
    Unavailable,
)

_RBAC: Final = re.compile(r"cannot (?P<verb>\S+) resource \"(?P<resource>[^\"]+)\"")
_UID_PRECONDITION: Final = re.compile(r"UID in (the )?precondition")
_QUOTA: Final = ("exceeded quota", "failed quota")
_NOT_YET: Final = ("error looking up service account",)
_WORDS: Final = 2000


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked, in RBAC's words: a verb and a resource such as `trainingjobs/status`."""

    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


class Cause(msgspec.Struct, gc=False):
    field: str = ""
    message: str = ""


class Details(msgspec.Struct, rename="camel", gc=False):
    causes: list[Cause] | None = None
    retry_after_seconds: int = 0


class Status(msgspec.Struct, gc=False):
    """The API server's Status object, as far as it matters here."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: Details | None = None


def read_status(body: bytes) -> Status:
    """The Status in a reply; any other body becomes the message."""
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError:
        return Status(message=body[:_WORDS].decode(errors="replace").strip())


def error_of(call: Call, code: int, body: bytes, retry_after: str = "") -> ClusterError:
    """The error that a reply with this HTTP code means. `retry_after` is the header of that name."""
    status = read_status(body)
    words = f"{call}: {status.message or f'HTTP {code}'}"
    if code == 401:
        return Unavailable(f"{words}: the API server does not accept our credentials (expired token?)")
    if code == 403:
        return _forbidden(call, status)
    if code == 404:
        # A create can only miss its namespace, or its kind.
        return Rejected(words) if call.verb == "create" else NotFound(words)
    if code == 409:
        return _conflict(call, status, words)
    if code == 410:
        return Expired(words)
    if code == 422 and call.verb == "patch" and _names(status, "metadata.uid"):
        return Conflict(words)  # to the server a UID in a patch is a change of an immutable field
    if code == 429 or code >= 500:
        return Unavailable(f"{words} ({code})", _seconds(retry_after, status))
    return Rejected(words)


def unreachable(call: Call, error: BaseException) -> Unavailable:
    """No answer at all: refused, dropped, or timed out."""
    detail = str(error) or type(error).__name__
    return Unavailable(f"{call}: no answer from the API server: {detail}")


def _forbidden(call: Call, status: Status) -> ClusterError:
    if found := _RBAC.search(status.message):
        verb, resource = found["verb"], found["resource"]
        return Forbidden(f"the operator's role does not allow {verb} on {resource}: {status.message}")
    if any(text in status.message for text in _QUOTA + _NOT_YET):
        return Rejected(f"{call}: {status.message}", retriable=True)
    return Rejected(
        f"{call}: {status.message or 'forbidden'}"
    )  # an admission plugin: Pod Security and the like


def _conflict(call: Call, status: Status, words: str) -> ClusterError:
    if status.reason == "AlreadyExists":
        return AlreadyExists(words)
    if call.verb == "create":
        # Not ours to resolve: the quota's own bookkeeping was changed by somebody else in between.
        return Unavailable(words)
    if call.verb == "delete" and _UID_PRECONDITION.search(status.message):
        return NotFound(words)
    return Conflict(words)


def _names(status: Status, field: str) -> bool:
    causes = (status.details.causes if status.details else None) or ()
    return any(cause.field == field for cause in causes)


def _seconds(header: str, status: Status) -> float | None:
    if header.isdecimal():
        return float(header)
    asked = status.details.retry_after_seconds if status.details else 0
    return float(asked) if asked else None
