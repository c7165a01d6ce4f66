"""How an agent's words are read: its EXIT evidence, and the termination message it leaves behind."""

import json
from dataclasses import dataclass

from rerail_api.contract import AgentState

from .world import Exit, Termination


@dataclass(frozen=True, slots=True)
class LastWords:
    """The agent's termination message."""

    round: int
    state: AgentState
    exit: Exit | None


def last_words(termination: Termination) -> LastWords | None:
    """The agent's termination message, or None when the container ended without one."""
    try:
        raw = json.loads(termination.message)
        if not isinstance(raw, dict) or raw.get("rerail") != 1:
            return None
        told = raw.get("exit")
        return LastWords(
            int(raw.get("round", 0)),
            AgentState(raw.get("state", "Idle")),
            parse_exit(told) if isinstance(told, dict) else None,
        )
    except (ValueError, TypeError):
        return None


def parse_exit(raw: dict[str, object]) -> Exit:
    """An agent's EXIT object; fields of the wrong type are left out."""

    def number(key: str) -> int | None:
        value = raw.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(key: str) -> str:
        value = raw.get(key)
        return value if isinstance(value, str) else ""

    lines = raw.get("lines")
    return Exit(
        exit_code=number("exit_code"),
        signal=number("signal"),
        rank=number("rank"),
        local_rank=number("local_rank"),
        ordered=raw.get("ordered") is True,
        exception=text("exception") or None,
        last_line=text("last_line"),
        lines=tuple(str(line) for line in lines) if isinstance(lines, list) else (),
        contract=raw.get("contract") is True,
        same_on_all=raw.get("same_on_all") is True,
    )
