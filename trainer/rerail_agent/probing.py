"""Liveness between peers: a port that hangs up on whoever connects, and connects to the ports of others."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from rerail_agent.console import Console
from rerail_agent.orders import BadFrame, Probe, parse_probe
from rerail_agent.ports import bind_everywhere
from rerail_api.contract import ProbeOutcome

AT_ONCE = 16
_NO_WAY_THERE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EHOSTDOWN)


async def answer_probes() -> asyncio.Server | None:
    """Take connects from now on, on a port that the kernel chooses; None where none can be had.

    Hanging up is the answer: a process that is stopped or stuck never does, though its kernel takes connects.
    """
    listening = bind_everywhere(0)
    return None if listening is None else await asyncio.start_server(_hang_up, sock=listening)


class Prober:
    """Looks after peers for the coordinator, beside all else that the agent does."""

    def __init__(self, seconds: float, console: Console) -> None:
        self._seconds = seconds
        self._console = console
        self._tasks: set[asyncio.Task[None]] = set()

    def look_after(self, frame: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Do what a frame of kind `probe` asks for; who asks too much at once gets no answer."""
        try:
            asked = parse_probe(frame)
        except BadFrame as error:
            self._console.say(f"ignored a question: {error}")
            return
        if len(self._tasks) < AT_ONCE:
            task = asyncio.ensure_future(self._try(asked, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _try(self, asked: Probe, answer: Callable[[dict[str, Any]], None]) -> None:
        outcome = await probe(asked.address, asked.port, self._seconds)
        answer({"kind": "probed", "id": asked.id, "outcome": outcome.value})


async def probe(address: str, port: int, seconds: float) -> ProbeOutcome:
    """Whether a peer hangs up on us within this time, as it should."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), seconds)
    except (OSError, asyncio.TimeoutError) as error:
        return _failed(error)
    try:
        await asyncio.wait_for(reader.read(1), max(0.0, deadline - loop.time()))
    except asyncio.TimeoutError:
        return ProbeOutcome.MUTE
    except OSError as error:
        return _failed(error)
    finally:
        writer.transport.abort()
    return ProbeOutcome.REACHED


def _failed(error: Exception) -> ProbeOutcome:
    if isinstance(error, (ConnectionRefusedError, ConnectionResetError, BrokenPipeError)):
        # a reset: it ended while the connect lay in its queue
        return ProbeOutcome.REFUSED
    if isinstance(error, asyncio.TimeoutError) or getattr(error, "errno", None) in _NO_WAY_THERE:
        return ProbeOutcome.TIMEOUT
    return ProbeOutcome.UNKNOWN


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
