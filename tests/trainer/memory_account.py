"""Counts the bytes of all tensors that live, and the most that ever did: what a plan's arithmetic is held against."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryAccount(TorchDispatchMode):
    """While entered, looks at memory after every operator; it counts once, however many tensors share it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def live(self) -> int:
        """Bytes now. Asked of the memory itself: FSDP shrinks what it gathered, and never frees it."""
        return sum(storage.nbytes() for storage in self._storages)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            # A DTensor has no memory of its own: it will come back with its local parts.
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if type(leaf) in (torch.Tensor, torch.nn.Parameter) and not leaf.is_meta:
                self._storages.add(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out
