"""What is known about the first rank that failed, for the coordinator and for the termination message."""

from __future__ import annotations

import json
import os
from typing import Any

from rerail_agent.output import EVIDENCE_LINE_BYTES, bounded, cut
from rerail_agent.ranks import Rank, Ranks
from rerail_agent.settings import KUBELET_TERMINATION_LOG

TERMINATION_BYTES = 4096
MESSAGE_BYTES = 512
SIGNAL_BASE = 128


def exit_report(ranks: Ranks, contract: bool, now: float) -> dict[str, Any] | None:
    """EXIT of the contract; None while no rank has failed. Only `age` changes by itself."""
    first = ranks.first_failed
    if first is None:
        return None
    code = first.true_code or 0
    exception, last_line = _last_words(first)
    return {
        "rank": first.launch.rank,
        "local_rank": first.launch.local_rank if first.launch.rank is not None else None,
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "ordered": first.ordered,
        "exception": exception,
        "last_line": cut(last_line, EVIDENCE_LINE_BYTES),
        "lines": bounded(list(first.cause.lines) or first.tail.lines()),
        "age": round(max(0.0, now - first.ended_at), 3),
        "contract": contract,
        "codes": {str(rank.launch.local_rank): rank.true_code for rank in ranks.all if not rank.alive},
        "same_on_all": _same_on_all(ranks),
    }


def process_code(ranks: Ranks) -> int | None:
    """The code with which the agent itself ends: the root rank's (128 + signal); None when nothing ran."""
    if not ranks.started:
        return None
    code = ranks.first_failed.true_code if ranks.first_failed is not None else 0
    code = code or 0
    return SIGNAL_BASE - code if code < 0 else code


def write_termination_message(path: str, content: dict[str, Any]) -> None:
    """Replace the termination message; the file itself must stay, for the kubelet has mounted it.

    A file that cannot be written is no reason to fail: the coordinator has the same evidence.
    The kubelet's own is never made: where it is not mounted, this is no container and /dev is not ours.
    """
    _replace(path, _fitting(content))


def clear_termination_message(path: str) -> None:
    """No message: the kubelet then takes the last lines of the log instead."""
    _replace(path, b"")


def _replace(path: str, raw: bytes) -> None:
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | (0 if path == KUBELET_TERMINATION_LOG else os.O_CREAT)
    try:
        fd = os.open(path, flags, 0o644)
    except OSError:
        return
    try:
        os.write(fd, raw)
    except OSError:
        return
    finally:
        os.close(fd)


def _fitting(content: dict[str, Any]) -> bytes:
    """The content as compact JSON in at most TERMINATION_BYTES, given up from the oldest log line on."""
    content = dict(content)
    content["message"] = cut(str(content.get("message") or ""), MESSAGE_BYTES)
    raw = _compact(content)
    while len(raw) > TERMINATION_BYTES and content.get("exit") and content["exit"]["lines"]:
        content["exit"] = {**content["exit"], "lines": content["exit"]["lines"][1:]}
        raw = _compact(content)
    if len(raw) > TERMINATION_BYTES and content.get("exit"):
        # 64 ranks with long codes at most: what happened is worth more than all of them
        content["exit"] = {
            **content["exit"],
            "codes": {},
            "last_line": cut(content["exit"]["last_line"], 128),
        }
        raw = _compact(content)
    return raw


def _compact(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _last_words(rank: Rank) -> tuple[str | None, str]:
    """(exception type, last line). A rank that a signal ended raised nothing, whatever it had logged."""
    signalled = (rank.true_code or 0) < 0
    if rank.cause.exception is not None and not signalled:
        return rank.cause.exception, rank.cause.last_line or ""
    found = None if signalled else rank.tail.exception()
    if found is not None:
        return found
    return None, rank.cause.last_line or rank.tail.last_line()


def _same_on_all(ranks: Ranks) -> bool:
    ends = {(rank.true_code, _last_words(rank)[1]) for rank in ranks.all if not rank.alive}
    return not ranks.alive and len(ends) == 1
