"""Memory that a rank fills and its writer reads: the copy of the state that is being saved.

An anonymous file, mapped by both processes: nothing bears its name, so a killed rank leaves nothing behind,
and the same memory serves every save. It is as large as this rank's part of the state.
"""

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensorfile import Part

_ALIGNMENT = 64


@dataclass(frozen=True)
class Berth:
    """A part of the state: the live memory it is copied from, and where its copy begins."""

    part: Part
    source: Tensor
    at: int
    early: bool
    """Copied before the device does anything else: its values may change before the optimizer's next step."""


def anonymous_file(name: str) -> int:
    """Descriptor of an empty file without a name; held in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def berths_of(parts: Sequence[tuple[Part, Tensor, bool]]) -> tuple[Berth, ...]:
    """Places one after the other, each where its values may begin."""
    berths, at = [], 0
    for part, source, early in parts:
        berths.append(Berth(part, source, at, early))
        at += -(-part.bytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(berths)


def room_for(berths: Sequence[Berth]) -> int:
    """Bytes that they take."""
    return max((berth.at + berth.part.bytes for berth in berths), default=0)


class Staging:
    """The memory, and the copying into it. On a GPU it is pinned and copied into beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self.descriptor = anonymous_file("rerail-staging")
        self.size = 0
        self._device = device
        self._cuda = self.beside = device.type == "cuda"
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._stream: Any = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._copied: Any = None

    def reserve(self, size: int) -> None:
        """Has room for `size` bytes, touched and pinned, so that no save waits for memory."""
        if size <= self.size:
            return
        self._release()
        os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.size = size
        np.frombuffer(self._map, dtype=np.uint8)[:] = 0
        if self._cuda:
            # Each thread has a current device of its own, at first number 0: which need not be this rank's.
            with torch.cuda.device(self._device):
                # Where the system forbids it the copy is slower and waits for the device: still right.
                cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                cudart.cudaHostRegister(self._bytes.data_ptr(), size, 0)

    def fill(self, berths: Sequence[Berth]) -> None:
        """Starts copying every berth's source; `wait` says when the sources may change again."""
        self.reserve(room_for(berths))
        self._copy([berth for berth in berths if berth.early])
        if not self._cuda:
            self._copy([berth for berth in berths if not berth.early])
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy([berth for berth in berths if not berth.early])
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(self._stream)

    def wait(self) -> None:
        """Returns when everything is copied."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None

    def close(self) -> None:
        self._release()
        os.close(self.descriptor)

    @torch.no_grad()
    def _copy(self, berths: Sequence[Berth]) -> None:
        for berth in berths:
            if self._cuda or not berth.source.is_contiguous():
                self._view(berth).copy_(berth.source, non_blocking=self._cuda)
                continue
            # Not torch's copy: one thread moves 10 GB/s, and those of OpenMP spin where cores are short
            # (380 MB on two busy cores: 0.2 to 0.4 s of CPU time instead of 0.04).
            flat = self._bytes[berth.at : berth.at + berth.part.bytes].numpy()
            flat[:] = berth.source.reshape(-1).view(torch.uint8).numpy()

    def _view(self, berth: Berth) -> Tensor:
        flat = self._bytes[berth.at : berth.at + berth.part.bytes]
        return flat.view(berth.source.dtype).view(berth.source.shape)

    def _release(self) -> None:
        if self._map is None:
            return
        if self._cuda:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())  # type: ignore[no-untyped-call]
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._map.close()
        self._map = None
