"""The bytes of a watch and of a list, decoded straight into the models that informers ask for."""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec

from rerail_operator.shell.cluster import Change, ClusterError, Unavailable
from rerail_operator.shell.kube.errors import Call, error_of
from rerail_operator.shell.streams import Seen, log_unreadable

Record = TypeVar("Record")


class _Line(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _Meta(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Bare(msgspec.Struct, gc=False):
    """An object of which only the name and the version matter."""

    metadata: _Meta


class _ListMeta(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, gc=False):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_LINE = msgspec.json.Decoder(_Line)
_BARE = msgspec.json.Decoder(_Bare)
_PAGE = msgspec.json.Decoder(_Page)


class Reader:
    """Decodes one kind of object. `record` makes of the model what is kept."""

    def __init__(self, call: Call, model: type[Any], record: Callable[[Any], Any]) -> None:
        self._call = call
        self._decode = msgspec.json.Decoder(dict[str, Any] if model is dict else model).decode
        self._record = record

    def page(self, body: bytes) -> tuple[list[Any], str, str]:
        """The records of one page of a list, its version, and the token of the next page ("" at the end)."""
        try:
            page = _PAGE.decode(body)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{self._call}: the reply cannot be read: {error}") from error
        records = (self._read(item) for item in page.items or ())
        kept = [record for record in records if record is not None]
        return kept, page.metadata.resource_version, page.metadata.continue_

    def event(self, line: bytes) -> Seen[Any] | None:
        """One line of a watch; None when its object cannot be decoded (which is logged).

        Raises what the server says in an ERROR line: Expired, Unavailable.
        """
        try:
            event = _LINE.decode(line)
            if event.type == "ERROR":
                raise _stream_error(self._call, bytes(event.object))
            version = _BARE.decode(event.object).metadata.resource_version
            change = Change(event.type)
        except (msgspec.DecodeError, ValueError) as error:
            raise Unavailable(f"{self._call}: the stream cannot be read: {error}") from error
        if change is Change.BOOKMARK:
            return Seen(change, version)
        record = self._read(event.object)
        return None if record is None else Seen(change, version, record)

    def _read(self, raw: msgspec.Raw) -> Any | None:
        try:
            return self._record(self._decode(raw))
        except (msgspec.DecodeError, LookupError) as error:
            meta = _BARE.decode(raw).metadata
            log_unreadable({"namespace": meta.namespace, "name": meta.name}, error)
            return None


async def lines(chunks: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
    """Whole lines, of whatever length. A stream that ends within a line was dropped."""
    rest = b""
    async for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        if not whole:
            rest += last
            continue
        yield rest + whole[0]
        for line in whole[1:]:
            yield line
        rest = last
    if rest.strip():
        raise Unavailable(f"{call}: the stream broke off in the middle of an event")


def _stream_error(call: Call, body: bytes) -> ClusterError:
    try:
        code = msgspec.json.decode(body, type=_Code).code
    except msgspec.DecodeError:
        code = 500
    return error_of(call, code if code == 410 else max(code, 500), body)


class _Code(msgspec.Struct, gc=False):
    code: int = 500
