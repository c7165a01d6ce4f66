"""What one test must not leave to the next: they share a process, and their order is drawn."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

_OF_PYTEST = ("PYTEST_",)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def state() -> dict[str, Any]:
    """Everything of this process that outlives a test and decides what the next one does, by name."""
    found: dict[str, Any] = {
        f"os.environ[{name!r}]": value
        for name, value in os.environ.items()
        if not name.startswith(_OF_PYTEST)
    }
    found |= {f"the handler of {number.name}": signal.getsignal(number) for number in _SIGNALS}
    return found | {
        "the working folder": os.getcwd(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch is deterministic": torch.are_deterministic_algorithms_enabled(),
        "whether gradients are wanted": torch.is_grad_enabled(),
        "the precision of products": torch.get_float32_matmul_precision(),
        "whether a process group is there": dist.is_initialized(),
        "whether garbage is collected": gc.isenabled(),
        "the level of the root logger": logging.root.level,
        "sys.excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each name whose value is another now."""
    names = [*before, *(name for name in after if name not in before)]
    none = "nothing"
    return [
        f"{name} was {before.get(name, none)!r}, is {after.get(name, none)!r}"
        for name in names
        if before.get(name, none) != after.get(name, none)
    ]


@contextmanager
def leaving_nothing_changed() -> Iterator[None]:
    """Raises AssertionError for what its block leaves changed; environment and folder it sets back itself, so
    that the tests after it fail for their own faults only.
    """
    before, environment, folder = state(), dict(os.environ), os.getcwd()
    yield
    left = changes(before, state())
    if left:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
    assert not left, f"left changed for the next test: {'; '.join(left)}"
