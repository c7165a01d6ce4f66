"""What a test has to do inside a rank: called by name in the forked process, before the trainer's own entry."""

import ctypes
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rerail_api.contract import ProgressPhase
from rerail_trainer import busy, loop, watchdog
from rerail_trainer.checkpoint.state import TrainingState, named_tensors
from rerail_trainer.data import feed
from rerail_trainer.parallel import layouts
from rerail_trainer.parallel.shards import local_shard

POISONED_STEP, POISONED_RANK = 3, 1
STUCK_STEP = 6
STUCK_SECONDS = 4.0
"""The watchdog's limit of this step alone: those before it may take as long as the machine likes."""
SLOW_SECONDS = 0.1


def poison_one_rank() -> None:
    """At one step the loss of one rank alone is not a number; every rank prints what the step changed on it."""
    real = loop.update

    def update(run: loop.Run, step: int) -> Tensor:
        if step + 1 != POISONED_STEP:
            return real(run, step)
        before = _values(run)
        if run.meeting.identity.rank == POISONED_RANK:
            loss = run.layout.loss
            run.layout.loss = lambda *inputs: loss(*inputs) * torch.nan  # type: ignore[method-assign]
        measured = real(run, step)
        changed = [name for name, value in _values(run).items() if not torch.equal(value, before[name])]
        os.write(1, (json.dumps({"finite": measured[2].item(), "changed": changed}) + "\n").encode())
        return measured

    loop.update = update


class Questions(TorchFunctionMode):
    """Notes who asks a tensor for its values, which on a GPU would wait for all that was sent off before."""

    ASKING = (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "equal",
        "nonzero",
    )

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self._asked = asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.ASKING:
            self._asked.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """The same below autograd, where a shape that depends on values asks as well."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero")

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self._asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # it will come back with its local parts
        if func.overloadpacket.__name__ in self.ASKING:
            self._asked.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def note_what_a_step_asks_the_device() -> None:
    """Every rank prints what its third step asked a tensor for, and what reading its loss asked afterwards."""
    real = loop.update

    def update(run: loop.Run, step: int) -> Tensor:
        if step + 1 != POISONED_STEP:
            return real(run, step)
        asked: list[str] = []
        with Questions(asked), Operators(asked):
            measured = real(run, step)
            in_the_step = list(asked)
            measured.sum().item()
        os.write(1, (json.dumps({"step": in_the_step, "after": asked[len(in_the_step) :]}) + "\n").encode())
        return measured

    loop.update = update


def send_gradients_of_every_micro_batch() -> None:
    """As for a model whose gradients are too large to be kept whole."""
    layouts.WHOLE_GRADIENT_BYTES = 0


def stand_still_on_rank_1() -> None:
    """Rank 1 is stopped between two steps, so that the other one waits for it in the next."""
    _before_the_stuck_step(lambda: os.environ["RANK"] != "1" or os.kill(os.getpid(), signal.SIGSTOP))


def read_data_that_never_come() -> None:
    """Rank 1 opens a pipe that nobody writes to when it reads the data of one step, as a dead network disk would hold
    it.
    """
    _before_the_stuck_step(lambda: None)
    real, pipe = feed.Feed.batch, os.path.join(tempfile.mkdtemp(), "pipe")
    os.mkfifo(pipe)

    def batch(self: feed.Feed, step: int) -> feed.Batch:
        if os.environ["RANK"] == "1" and step + 1 == STUCK_STEP:
            open(pipe, "rb").close()
        return real(self, step)

    feed.Feed.batch = batch  # type: ignore[method-assign]


def hold_the_interpreter() -> None:
    """After a step, native code waits for ever without giving the interpreter's lock to other threads."""
    watchdog._DEAF_SECONDS = 1.0
    real, word_is_left = watchdog.Watchdog._arm, threading.Event()

    def arm(self: watchdog.Watchdog, left: float) -> None:
        real(self, left)
        if left <= STUCK_SECONDS:
            word_is_left.set()

    def hold() -> None:
        word_is_left.wait()  # the watchdog's thread wakes once a second, and then leaves word
        ctypes.PyDLL(None).pause()

    watchdog.Watchdog._arm = arm  # type: ignore[method-assign]
    _before_the_stuck_step(hold)


def _before_the_stuck_step(do: Callable[[], object]) -> None:
    """Between two steps: the watchdog's limit becomes short, then this is done."""
    real = watchdog.Watchdog.step

    def step(self: watchdog.Watchdog, number: int) -> None:
        real(self, number)
        if number + 1 == STUCK_STEP:
            self._limits[ProgressPhase.TRAIN] = STUCK_SECONDS
            do()

    watchdog.Watchdog.step = step  # type: ignore[method-assign]


def compute_slowly_on_rank_1() -> None:
    """Each step of rank 1 takes SLOW_SECONDS longer; windows are short, so that a test sees several."""
    real = feed.Feed.take
    busy.WINDOW_SECONDS = 0.2

    def take(self: feed.Feed, step: int) -> list[feed.MicroBatch]:
        if os.environ["RANK"] == "1":
            time.sleep(SLOW_SECONDS)
        return real(self, step)

    feed.Feed.take = take  # type: ignore[method-assign]


def _values(run: loop.Run) -> dict[str, Tensor]:
    state = TrainingState(run.layout.model, run.optimizer)
    return {name: local_shard(tensor).tensor.clone() for name, tensor in named_tensors(state)}
