"""The ConfigMap that holds all strikes: one key per node, one line per strike, so that people can read it."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from rerail_api.base import rfc3339
from rerail_api.contract import LABEL_MANAGED, MANAGED_BY
from rerail_api.status import IncidentClass
from rerail_operator.core.strikes import Book, Record, Strike
from rerail_operator.shell.cluster import Object

log = logging.getLogger(__name__)

NAME: Final = "rerail-node-strikes"
MAX_BYTES: Final = 768 * 1024
"""The API server takes 1 MiB in all; names of nodes, jobs and racks may be long."""
CLEARED: Final = "cleared"
NOWHERE: Final = "-"
SEEN: Final = {"seen": True, "told": False}
"""By the API server; by processes of the job."""


def book_of(config_map: Object) -> Book:
    """What the ConfigMap says; lines that cannot be read are left out and named in the log."""
    data: Mapping[str, str] = config_map.get("data") or {}
    return {node: _record(node, text) for node, text in data.items()}


def data_of(book: Book) -> dict[str, str]:
    """The book as the ConfigMap's data; beyond 768 KiB the nodes that were struck last are kept."""
    pages = [(record.newest, node, _text(record)) for node, record in book.items()]
    newest_first = sorted((page for page in pages if page[0]), key=lambda p: (p[0], p[1]), reverse=True)
    left, kept = MAX_BYTES, {}
    for _, node, text in newest_first:
        left -= len(node.encode()) + len(text.encode())
        if left < 0:
            break
        kept[node] = text
    return dict(sorted(kept.items()))


def fresh(namespace: str) -> Object:
    """The ConfigMap before anything is written in it."""
    labels = {LABEL_MANAGED: MANAGED_BY}
    meta = {"name": NAME, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {}}


def _text(record: Record) -> str:
    lines = [f"{rfc3339(record.cleared)} {CLEARED}"] if record.cleared else []
    for strike in record.strikes:
        where = "/".join(strike.domain) or NOWHERE
        who = f"{strike.namespace}/{strike.job} {strike.uid}#{strike.number}"
        how = "seen" if strike.seen else "told"
        share = f" 1/{strike.among}" if strike.among > 1 else ""
        lines.append(f"{rfc3339(strike.at)} {strike.kind.value} {how} {who} {where}{share}")
    return "".join(line + "\n" for line in lines)


def _record(node: str, text: str) -> Record:
    strikes, cleared = [], None
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            at, what, *rest = line.split()
            if what == CLEARED:
                cleared = _time(at)
            else:
                strikes.append(_strike(at, what, *rest))
        except (ValueError, KeyError):
            log.warning("ConfigMap %s: a line of %s cannot be read and is left out: %r", NAME, node, line)
    return Record(tuple(sorted(strikes, key=lambda s: (s.at, s.key))), cleared)


def _strike(at: str, kind: str, *rest: str) -> Strike:
    how, job, key, where, *share = rest
    namespace, name = job.split("/")
    uid, number = key.split("#")
    place = () if where == NOWHERE else tuple(where.split("/"))
    return Strike(
        _time(at), IncidentClass(kind), namespace, name, uid, int(number), place, SEEN[how], _among(share)
    )


def _among(share: list[str]) -> int:
    among = int(share[0].removeprefix("1/")) if share else 1
    if among < 1:
        raise ValueError(f"{share[0]} is no share")
    return among


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return time
