"""Builders for tests of strikes: strikes and nodes in one call each, all times counted back from `NOW`."""

from datetime import UTC, datetime, timedelta

from rerail_api.status import IncidentClass
from rerail_operator.core.strikes import Book, Record, Strike
from rerail_operator.core.world import Nodes

from .ground import a_node, nodes_of

K = IncidentClass
NOW = datetime(2026, 5, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def ago(hours: float) -> datetime:
    return NOW - timedelta(hours=hours)


def strike(hours: float, kind: K = K.NODE_LOSS, by: str = "red/gpt", **fields: object) -> Strike:
    """`by`: namespace/job; every call is an incident of its own unless `number` says so."""
    namespace, job = by.split("/")
    known = {"uid": f"uid-{by}", "number": int(hours * 3600) + 1, "seen": kind is K.NODE_LOSS, **fields}
    return Strike(ago(hours), kind, namespace, job, **known)  # type: ignore[arg-type]


def many(count: int, **fields: object) -> Nodes:
    return nodes_of(*(a_node(f"n{i}", **fields) for i in range(count)))  # type: ignore[arg-type]


def losses(node_hours: dict[str, tuple[float, ...]]) -> Book:
    return {node: Record(tuple(strike(h) for h in hours)) for node, hours in node_hours.items()}


FORTY = many(40)
