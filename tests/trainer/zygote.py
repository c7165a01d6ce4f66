"""A process that has imported torch once and forks ranks on demand: a start costs milliseconds, not seconds.

Every rank is a process of its own, with its own signals, exit code and output. Requests and replies are lines of
JSON on standard input and output. What a test wants to happen in the middle of a save (kill, freeze) is asked for
here, through the observer that the trainer's entry takes; the trainer itself has no switch for tests.
"""

import importlib
import json
import os
import pydoc_data.topics  # noqa: F401  a changed user may not be able to read it
import signal
import sys
from typing import Any

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor

from rerail_trainer import startup  # noqa: F401
from rerail_trainer.__main__ import leave, main
from rerail_trainer.checkpoint.save import SavePoint
from rerail_trainer.checkpoint.storage import PosixStorage


def become_rank(request: dict[str, Any]) -> None:
    """In the child: takes on environment, output and user, then runs the trainer's own entry."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["env"])
    if request.get("uid"):
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    if request.get("blind"):
        go_blind()
    torch.set_num_threads(1)
    if request.get("inside"):
        getattr(importlib.import_module("tests.trainer.inside"), request["inside"])()
    leave(main(request["words"], observer_of(request.get("at"))))


def go_blind() -> None:
    """From now on this process lists the root of a checkpoint folder as a network file system may that is behind:
    without what others have just made there. Opening a file by its name works.
    """
    listed = PosixStorage.names
    PosixStorage.names = lambda self, path: listed(self, path) if path else []  # type: ignore[method-assign]


def observer_of(wish: dict[str, Any] | None) -> Any:
    """An observer that sends a signal at one point of one save: of a step, or of the save of that number.

    victim: "rank", this process, or "writer", its writer, which waits at the point until the observer is done.
    """
    if wish is None:
        return None
    number = signal.Signals[wish["signal"]]
    begun = 0

    def observe(point: SavePoint, step: int, writer: int) -> None:
        nonlocal begun
        begun += point is SavePoint.DUE
        if point is SavePoint(wish["point"]) and (step == wish.get("step") or begun == wish.get("save")):
            os.kill(writer if wish.get("victim") == "writer" else os.getpid(), number)

    return observe


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "start":
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                become_rank(request)
            reply = {"pid": pid}
        elif request["do"] == "poll":
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            reply = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
