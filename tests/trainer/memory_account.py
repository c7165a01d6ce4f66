"""Counts the bytes of all tensors that live, and the most that ever did: what a plan's arithmetic is held against."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryAccount(TorchDispatchMode):
    """While entered, sees the result of every operator; memory counts once, however many tensors share it.

    resizes: asks all memory for its size after every operator, which is slow; FSDP shrinks what it gathered
    to nothing and never frees it.
    """

    def __init__(self, resizes: bool = False) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._resizes = resizes
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def live(self) -> int:
        """Bytes now."""
        return sum(storage.nbytes() for storage in self._storages) if self._resizes else self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            # A DTensor has no memory of its own: it will come back with its local parts.
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if type(leaf) in (torch.Tensor, torch.nn.Parameter) and not leaf.is_meta:
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _note(self, storage: Any) -> None:
        if storage not in self._storages:
            self._storages.add(storage)
            self._live += storage.nbytes()
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self._live -= size
