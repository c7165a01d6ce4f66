"""TensorBoard's event files by TensorBoard's own writer; needs the extra `sinks`, and no torch."""

import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_SECONDS = 10
"""What a kill may lose."""
_TAGS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "tokens": "train/tokens",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "mfu": "speed/mfu",
    "eval_loss": "eval/loss",
    "eval_bits_per_byte": "eval/bits_per_byte",
    "stall_seconds": "checkpoint/stall_seconds",
    "seconds": "checkpoint/save_seconds",
    "bytes": "checkpoint/bytes",
}


class EventFile:
    """A sink. Each start writes a file of its own into the folder; TensorBoard joins them."""

    def __init__(self, folder: str) -> None:
        self._writer = EventFileWriter(folder, flush_secs=_FLUSH_SECONDS)

    def step(self, values: Mapping[str, Any]) -> None:
        self._scalars(values)

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        if name == "start":
            # TensorBoard then forgets steps beyond this one that an earlier start wrote.
            session = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=values["step"] + 1, session_log=session))
        elif name in ("eval", "commit"):
            self._scalars(values)

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, values: Mapping[str, Any]) -> None:
        tagged = [
            Summary.Value(tag=_TAGS[key], simple_value=value)
            for key, value in values.items()
            if key in _TAGS and value is not None
        ]
        if tagged:
            event = Event(wall_time=time.time(), step=values["step"], summary=Summary(value=tagged))
            self._add(event)

    def _add(self, event: Any) -> None:
        self._writer.add_event(event)
