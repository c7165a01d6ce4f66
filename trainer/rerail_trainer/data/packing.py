"""Lays pieces of different lengths into windows of one length, with little left over."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .order import window_of


@dataclass(frozen=True)
class Packing:
    """Window w holds pieces members[borders[w] : borders[w + 1]], in that order."""

    members: NDArray[np.int64]
    borders: NDArray[np.int64]

    @property
    def windows(self) -> int:
        return len(self.borders) - 1

    def of(self, window: int) -> NDArray[np.int64]:
        """The pieces of one window."""
        return self.members[self.borders[window] : self.borders[window + 1]]


def pack(lengths: NDArray[np.int64], room: int, seed: int) -> Packing:
    """Best fit, longest first (Johnson, 1973); pieces of equal length in an order that `seed` shuffles.

    A pure function of its arguments. Every length must lie in 1..room.
    """
    shuffled = window_of(np.arange(len(lengths), dtype=np.int64), max(1, len(lengths)), seed)
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    windows: list[list[int]] = []
    # Windows by the room that is left in them; `rooms` lists, in order, the rooms that some window has.
    waiting: dict[int, list[int]] = {}
    rooms: list[int] = []
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            left, window = room, len(windows)
            windows.append([])
        else:
            left = rooms[place]
            window = waiting[left].pop()
            if not waiting[left]:
                del waiting[left], rooms[place]
        windows[window].append(piece)
        left -= length
        if left not in waiting:
            waiting[left] = []
            insort(rooms, left)
        waiting[left].append(window)
    borders = np.cumsum([0, *(len(window) for window in windows)], dtype=np.int64)
    members = np.array([piece for window in windows for piece in window], dtype=np.int64)
    return Packing(members, borders)
