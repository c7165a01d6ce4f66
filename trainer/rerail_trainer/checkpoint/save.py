"""Saving, which all ranks do together while training goes on.

A save has two phases. First every rank's writer brings that rank's files to a work folder; then the writer
of rank 0 adds the manifest and makes the folder a checkpoint by one rename. The ranks learn that a phase is
over, or that it failed somewhere, by two numbers that travel with the agreement they make at every step
boundary anyway, one step late; `wait` makes the same moves without steps in between.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch

from rerail_trainer.control import Control
from rerail_trainer.failures import Superseded

from . import layout
from .points import Observer, SavePoint
from .rounds import Tenure
from .staging import Berth, Staging, berths_of, room_for
from .state import TrainingState, parts_of, random_state
from .writer_process import WriterProcess

__all__ = ["Observer", "Outcome", "Position", "Retention", "SavePoint", "Saver", "Training"]

_PATIENCE_SECONDS = 0.5
"""So long a rank listens to its own writer before it asks the others again how far they are."""


@dataclass(frozen=True)
class Position:
    """Where training stands, and what it is: the part of the manifest that the loop knows."""

    step: int
    tokens: int
    sample_index: int


@dataclass(frozen=True)
class Training:
    """What stays the same over all saves of a run; the manifest tells of it."""

    identity: dict[str, Any]
    config_hash: str
    data_digest: str
    layout: str
    tokenizer: str = ""


@dataclass(frozen=True)
class Retention:
    keep: int
    keep_every: int


@dataclass(frozen=True)
class Outcome:
    """How a save ended, equal on all ranks.

    step: None when a writer died while nothing was being saved; failure: empty when the step is committed;
    reason: a word for it, for the metric; seconds: from the begin to the commit; stall_seconds: how long
    training waited, on rank 0; time: of the commit, in Unix seconds.
    """

    step: int | None
    failure: str = ""
    reason: str = ""
    seconds: float = 0.0
    stall_seconds: float = 0.0
    bytes: int = 0
    time: float = 0.0

    @property
    def committed(self) -> bool:
        return not self.failure


class _Phase(Enum):
    IDLE = "idle"
    WRITING = "writing"
    COMMITTING = "committing"


class Saver:
    """Saves steps of one round. Every method but `own` and `staged` is called by all ranks together."""

    def __init__(
        self, control: Control, root: str, tenure: Tenure, training: Training, device: torch.device
    ) -> None:
        self._control, self._root, self._tenure, self._training = control, root, tenure, training
        self._staging = Staging(device)
        self._writer = WriterProcess(self._staging.descriptor)
        self._phase, self._stale = _Phase.IDLE, False
        self._count, self._began = 0, 0.0
        self._stalled, self._stall_began = 0.0, 0.0
        self._stalled_before = 0.0
        self._room: threading.Thread | None = None
        self._pruning = False
        self._position = Position(0, 0, 0)
        self._files: list[dict[str, Any]] = []
        self._berths: tuple[Berth, ...] = ()
        self._known: list[int] = []
        self._order: dict[str, Any] | None = None
        self._observer: Observer | None = None
        self.retention = Retention(keep=2, keep_every=0)

    @property
    def under_way(self) -> bool:
        return self._phase is not _Phase.IDLE

    @property
    def stall_seconds(self) -> float:
        """How long training has waited here for saves since the process began, failed ones included."""
        now = time.monotonic() - self._stall_began if self._stall_began else 0.0
        return self._stalled + now

    def get_ready(self, state: TrainingState) -> None:
        """Starts the writer and takes the memory, so that the first save costs no more than the others."""
        self._writer.start()
        size = room_for(self._placed(state))
        self._room = threading.Thread(target=self._staging.reserve, args=(size,), name="staging", daemon=True)
        self._room.start()

    def observe(self, observer: Observer) -> None:
        """Lets `observer` see every point of every save."""
        self._observer = observer
        self._writer.observer = observer

    def begin(self, position: Position, state: TrainingState) -> None:
        """Copies the state and sets the writers to work. After `staged` the state may change."""
        if self.under_way:
            raise RuntimeError(f"step {self._position.step} is still being saved")
        self._began, self._stalled_before = time.monotonic(), self._stalled
        with self._stall():
            if self._room is not None:
                self._room.join()
            self._position = position
            self._reached(SavePoint.DUE)
            self._count += 1
            berths = self._placed(state)
            self._staging.fill(berths)
            self._order = self._order_to_write(berths)
            self._writer.replies.pop("write", None)
            self._enter(_Phase.WRITING)
            if not self._staging.beside:
                self.staged()

    def staged(self) -> None:
        """Waits until the state is copied; costs nothing when no copy is under way."""
        if self._order is None:
            return
        with self._stall():
            self._staging.wait()
            self._reached(SavePoint.STAGED)
            self._writer.order("write", **self._order)
            self._order = None

    def own(self) -> tuple[bool, bool]:
        """(this rank's part of the phase is not done yet, it has failed): what the others must know."""
        self._writer.listen()
        replies = self._writer.replies
        if self._phase is _Phase.COMMITTING and not self._control.first:
            return False, False
        awaited = self._awaited
        failed = bool(self._writer.death) or "failed" in replies.get(awaited, {})
        return bool(awaited) and awaited not in replies and not failed, failed

    def advance(self, saving: bool, failed: bool) -> Outcome | None:
        """A step boundary, with what all ranks agreed on one boundary ago; the outcome if that ends a save.

        Raises Superseded on all ranks when a newer round owns the folder.
        """
        if self._stale:
            # Sent before this phase began: it speaks of the one before.
            self._stale = False
            return None
        with self._stall():
            return self._move(saving, failed)

    def wait(self) -> Outcome:
        """Does nothing else until the save under way has ended. Raises Superseded as `advance` does."""
        self.staged()
        with self._stall():
            while True:
                if self.own()[0]:
                    self._writer.listen(_PATIENCE_SECONDS)
                outcome = self._move(*map(bool, self._control.most(*self.own())))
                if outcome is not None:
                    return outcome

    def pruned(self, wait: bool = False) -> str:
        """Why older steps could not be removed after the last commit, told once; rank 0 alone knows.

        wait: until it is known. With the end of the process the writer's end comes, too.
        """
        while self._pruning and not self._writer.death:
            self._writer.listen(_PATIENCE_SECONDS if wait else 0.0)
            self._pruning = "prune" not in self._writer.replies
            if not wait:
                break
        return str(self._writer.replies.pop("prune", {}).get("text", ""))

    def close(self) -> None:
        """Ends the writer; a save under way is lost."""
        self._writer.close()

    def _move(self, saving: bool, failed: bool) -> Outcome | None:
        if failed:
            return self._give_up()
        if saving or self._phase is _Phase.IDLE:
            return None
        if self._phase is _Phase.WRITING:
            self._commit()
            return None
        return self._end()

    def _commit(self) -> None:
        """All ranks have written: rank 0's writer can make it a checkpoint."""
        gathered = self._control.gather(self._writer.replies["write"]["files"])
        self._files = [file for own in gathered for file in own]
        self._reached(SavePoint.ALL_RANKS_WRITTEN)
        if self._control.first:
            manifest = {
                **asdict(self._position),
                **asdict(self._training),
                "torch_version": torch.__version__,
                "world_size": self._control.world_size,
                "files": self._files,
            }
            retention = (self.retention.keep, self.retention.keep_every)
            # The answer about pruning belongs to the commit before, and has been told by now.
            self._writer.replies.pop("prune", None)
            self._writer.order("commit", **self._whereabouts(), manifest=manifest, retention=retention)
        self._enter(_Phase.COMMITTING)

    def _end(self) -> Outcome:
        reply = self._writer.replies.get("commit", {})
        size = sum(file["size"] for file in self._files)
        seconds = reply.get("clock", 0.0) - self._began
        outcome = Outcome(
            self._position.step,
            seconds=seconds,
            stall_seconds=self.stall_seconds - self._stalled_before,
            bytes=size,
            time=reply.get("time", 0.0),
        )
        self._pruning = self._control.first
        self._enter(_Phase.IDLE)
        return self._control.share(outcome)

    def _give_up(self) -> Outcome:
        """Some rank's writer failed or died; all are ready for the next save afterwards."""
        step = self._position.step if self.under_way else None
        own = self._failure()
        if self.own()[0] or self._writer.death:
            self._writer.start()
            self._pruning = False
        told = [(rank, *failure) for rank, failure in enumerate(self._control.gather(own)) if failure]
        rank, reason, text = self._control.share(told[0] if told else (0, "writer", "nobody knows why"))
        if reason == "superseded":
            raise Superseded(text)
        if step is not None and self._control.first:
            self._writer.order("drop", **self._whereabouts())
        self._order = None
        self._enter(_Phase.IDLE)
        return Outcome(step, failure=f"rank {rank}: {text}", reason=reason)

    def _failure(self) -> tuple[str, str] | None:
        if self._writer.death:
            return "writer", self._writer.death
        reply = self._writer.replies.get(self._awaited, {})
        return (reply["reason"], reply["text"]) if "failed" in reply else None

    @property
    def _awaited(self) -> str:
        """The order whose answer this phase waits for."""
        return {_Phase.WRITING: "write", _Phase.COMMITTING: "commit"}.get(self._phase, "")

    def _order_to_write(self, berths: tuple[Berth, ...]) -> dict[str, Any]:
        return {
            **self._whereabouts(),
            "rank": self._control.rank,
            "size": self._staging.size,
            "parts": [
                (part.name, part.shape, part.offset, part.sizes, part.kind)
                for part in (berth.part for berth in berths)
            ],
            "places": [berth.at for berth in berths],
            "host": {"random": random_state()},
        }

    def _whereabouts(self) -> dict[str, Any]:
        step, tenure = self._position.step, self._tenure
        return {
            "root": self._root,
            "tenure": {"author": asdict(tenure.author), "work": tenure.work},
            "folder": layout.save_folder(tenure.work, step, self._count),
            "step": step,
        }

    def _placed(self, state: TrainingState) -> tuple[Berth, ...]:
        """This rank's parts; found anew only where the state holds other tensors than before."""
        known = state.known()
        if known != self._known:
            self._berths = berths_of(parts_of(state, self._control.rank, self._control.world_size))
            self._known = known
        return self._berths

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._stale = phase, True

    def _reached(self, point: SavePoint) -> None:
        if self._observer is not None:
            self._observer(point, self._position.step, self._writer.pid)

    @contextmanager
    def _stall(self) -> Iterator[None]:
        """Time in which training waits; such a time inside another counts once."""
        if self._stall_began:
            yield
            return
        self._stall_began = time.monotonic()
        try:
            yield
        finally:
            self._stalled += time.monotonic() - self._stall_began
            self._stall_began = 0.0
