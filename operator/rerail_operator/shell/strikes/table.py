"""Nodes and what is held against them, as lines for people. Pure."""

from collections.abc import Mapping
from datetime import datetime

from rerail_operator.core.strikes import Book, Record, State, Verdict, number
from rerail_operator.core.topology import natural
from rerail_operator.core.world import Node, Nodes

HEAD = ("NODE", "READY", "STRIKES", "WEIGHT", "LAST", "WHEN", "BY", "STATE", "UNTIL", "WHY")
NONE = "-"


def as_text(book: Book, found: Mapping[str, Verdict], nodes: Nodes, everything: bool) -> str:
    """The table of the nodes with strikes (or of all), and one line that sums it up."""
    names = sorted({*found, *(nodes.by_name if everything else ())}, key=natural)
    rows = [_row(name, nodes.get(name), book.get(name, Record()), found.get(name)) for name in names]
    lines = _aligned([HEAD, *rows]) if rows else []
    return "\n".join([*lines, *([""] if lines else []), _sum(found, nodes)])


def _row(name: str, node: Node | None, record: Record, verdict: Verdict | None) -> tuple[str, ...]:
    ready = NONE if node is None else {True: "yes", False: "no", None: "unknown"}[node.ready]
    if verdict is None:
        return (name, ready, "0", "0", NONE, NONE, NONE, NONE, NONE, "")
    last = record.strikes[-1] if record.strikes else None
    return (
        name,
        ready,
        str(len(record.strikes)),
        number(verdict.weight),
        last.kind.value if last else NONE,
        _time(last.at) if last else NONE,
        f"{last.namespace}/{last.job}" if last else NONE,
        verdict.state.value,
        _time(verdict.until) if verdict.until else NONE,
        verdict.why,
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%MZ}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _sum(found: Mapping[str, Verdict], nodes: Nodes) -> str:
    avoided = sum(verdict.state is State.STRUCK for verdict in found.values())
    with_some = sum(verdict.state is not State.CLEARED for verdict in found.values())
    count = len(nodes.by_name)
    told = f"{count} node{'' if count == 1 else 's'}: {with_some or 'none'} with strikes"
    return f"{told}, {avoided} avoided" if with_some else told
