"""The guard around every test here: what a test leaves changed is named."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .leaks import leaving_nothing_changed


def leave_a_variable() -> Callable[[], object]:
    os.environ["RERAIL_LEFT"] = "1"
    return lambda: None


def leave_a_folder() -> Callable[[], object]:
    os.chdir("/")
    return lambda: None


def leave_a_dtype() -> Callable[[], object]:
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def leave_threads() -> Callable[[], object]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    return lambda: torch.set_num_threads(before)


def leave_a_handler() -> Callable[[], object]:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGUSR2, before)


def leave_garbage() -> Callable[[], object]:
    gc.disable()
    return gc.enable


LEAKS = {
    "os.environ['RERAIL_LEFT'] was 'nothing', is '1'": leave_a_variable,
    "the working folder was": leave_a_folder,
    "the default dtype was torch.float32, is torch.float64": leave_a_dtype,
    "torch's number of threads was": leave_threads,
    "the handler of SIGUSR2 was": leave_a_handler,
    "whether garbage is collected was True, is False": leave_garbage,
}


@pytest.mark.parametrize("said", LEAKS)
def test_what_a_test_leaves_changed_is_named(said: str) -> None:
    folder, guard = Path.cwd(), leaving_nothing_changed()
    guard.__enter__()
    set_back = LEAKS[said]()
    with pytest.raises(AssertionError) as told:
        guard.__exit__(None, None, None)
    set_back()
    assert f"left changed for the next test: {said}" in str(told.value)
    assert Path.cwd() == folder
    assert "RERAIL_LEFT" not in os.environ


def test_what_a_test_sets_back_is_nothing_to_tell() -> None:
    with leaving_nothing_changed():
        leave_a_dtype()()
        leave_threads()()
