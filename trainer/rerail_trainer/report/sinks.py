"""Where figures of steps and events between them go, besides metrics and lines for people. Torch-free."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from threading import Thread
from typing import Any, Protocol

from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig

from .jsonl import JsonLines

Values = Mapping[str, Any]

_CLOSE_SECONDS = 10.0


class Sink(Protocol):
    """Takes figures of rank 0. Any exception ends the sink, never the training."""

    def step(self, values: Values) -> None:
        """One finished step; `values` holds step, loss, grad_norm, lr, tokens and what else was measured."""

    def event(self, name: str, values: Values) -> None:
        """Something besides steps: start, resume, commit, eval, stop and the like."""

    def close(self) -> None:
        """Brings everything to where it belongs; the last call."""


class Careful:
    """A sink that may fail: one warning, and from then on silence."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._do(partial(self._open, open_sink))

    def step(self, values: Values) -> None:
        if self._sink is not None:
            self._do(partial(self._sink.step, values))

    def event(self, name: str, values: Values) -> None:
        if self._sink is not None:
            self._do(partial(self._sink.event, name, values))

    def close(self) -> None:
        """Waits no longer than a few seconds: a service far away must not use up the time that a stop has."""
        if self._sink is not None:
            closing = Thread(target=self._do, args=(self._sink.close,), daemon=True)
            closing.start()
            closing.join(_CLOSE_SECONDS)

    def _open(self, open_sink: Callable[[], Sink]) -> None:
        self._sink = open_sink()

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BadConfig:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, training goes on
            self._sink = None
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            sys.stderr.write(f"{self._name} gets no more figures: {first_line}; training goes on\n")


def open_sinks(config: Config) -> list[Careful]:
    """Those that the configuration names. Raises BadConfig for one whose package is missing."""
    wanted, sinks = config.metrics, []
    if wanted.jsonl:
        sinks.append(Careful(f"metrics.jsonl={wanted.jsonl}", lambda: JsonLines(wanted.jsonl)))
    if wanted.tensorboard:
        sinks.append(
            Careful(f"metrics.tensorboard={wanted.tensorboard}", lambda: _tensorboard(wanted.tensorboard))
        )
    if wanted.wandb:
        sinks.append(Careful(f"metrics.wandb={wanted.wandb}", lambda: _wandb(config)))
    return sinks


def _tensorboard(folder: str) -> Sink:
    try:
        from .tensorboard_sink import EventFile
    except ImportError as error:
        raise BadConfig("metrics.tensorboard needs tensorboard: pip install tensorboard") from error
    return EventFile(folder)


def _wandb(config: Config) -> Sink:
    try:
        from .wandb_sink import WandbRun
    except ImportError as error:
        raise BadConfig("metrics.wandb needs wandb: pip install wandb") from error
    return WandbRun(config)
