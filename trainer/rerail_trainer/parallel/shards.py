"""Which part of a tensor lies on this rank: the one place that knows how tensors are cut.

A tensor may be cut twice. Tensor and expert ranks take their part when the model is laid out, and what is
left is an ordinary, smaller tensor; a `Holding` attached to it says which part of which whole it is. FSDP may
then cut that once more, as a DTensor. The box of a rank is one inside the other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_HOLDING = "_rerail_holding"


@dataclass(frozen=True)
class Cut:
    """One dimension in `parts` equal parts, of which this is number `index`."""

    dim: int
    index: int
    parts: int


@dataclass(frozen=True)
class Holding:
    """What a tensor is before FSDP: its cuts, and its place among the ranks that hold the same.

    copy, copies: among ranks that FSDP does not know of as replicas.
    """

    cuts: tuple[Cut, ...] = ()
    copy: int = 0
    copies: int = 1


@dataclass(frozen=True)
class Shard:
    """The local part of a tensor.

    tensor: the memory itself, not a copy; shape: of the whole; offset: where the part begins in it.
    sharded: false for a tensor that all ranks hold. copy, copies: this rank's place among those that hold
    the same part; 0 and 1 for a tensor that was never marked, as nobody knows how many they are.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    sharded: bool
    copy: int = 0
    copies: int = 1

    @property
    def first_replica(self) -> bool:
        """Whether no rank that holds the same part comes before this one."""
        return self.copy == 0

    @property
    def region(self) -> tuple[slice, ...]:
        """Index of this part in the whole tensor."""
        sizes = self.tensor.shape
        return tuple(slice(begin, begin + size) for begin, size in zip(self.offset, sizes, strict=True))


def hold(tensor: Tensor, holding: Holding) -> None:
    """Writes on `tensor` which part of the whole it is."""
    setattr(tensor, _HOLDING, holding)


def holding_of(tensor: Tensor) -> Holding | None:
    """What was written on it; None for a tensor that all ranks hold, or that FSDP alone cuts."""
    return getattr(tensor, _HOLDING, None)


def zeros_like(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros that lie over the ranks as `parameter` does, for state that belongs to it."""
    zeros = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    holding = holding_of(parameter)
    if holding is not None:
        hold(zeros, holding)
    return zeros


@torch.no_grad()
def local_tensor(tensor: Tensor) -> Tensor:
    """The memory of this rank's part; cheap, as it does not ask where in the whole that lies."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
    return local


def local_gradient(parameter: Tensor) -> Tensor:
    """The memory of this rank's part of a gradient."""
    if parameter.grad is None:
        raise RuntimeError("a parameter got no gradient in this step")
    return local_tensor(parameter.grad)


@torch.no_grad()
def local_shard(tensor: Tensor) -> Shard:
    """The part of `tensor` on this rank; a plain tensor is its own only part."""
    holding = holding_of(tensor) or Holding()
    inner = _sharded(tensor) if hasattr(tensor, "device_mesh") else _plain(tensor, holding)
    shape, offset = list(inner.shape), list(inner.offset)
    for cut in holding.cuts:
        offset[cut.dim] += cut.index * inner.shape[cut.dim]
        shape[cut.dim] *= cut.parts
    return Shard(
        inner.tensor,
        tuple(shape),
        tuple(offset),
        inner.sharded,
        inner.copy + inner.copies * holding.copy,
        inner.copies * holding.copies,
    )


def _plain(tensor: Tensor, holding: Holding) -> Shard:
    local = tensor.detach()
    return Shard(local, tuple(local.shape), (0,) * local.dim(), sharded=bool(holding.cuts))


def _sharded(tensor: Tensor) -> Shard:
    # Imported here: the DTensor modules cost seconds, and a replicated run needs none of them.
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        raise TypeError(f"{type(tensor).__name__} has a mesh but is no DTensor")
    mesh = tensor.device_mesh
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    copy, copies = 0, 1
    for at, size, placement in zip(mesh.get_coordinate() or [], mesh.shape, tensor.placements, strict=True):
        if placement.is_replicate():
            copy, copies = copy * size + at, copies * size
    local = tensor.to_local().detach()
    if tuple(local.shape) != tuple(shape):
        raise RuntimeError(f"local part is {tuple(local.shape)}, its placement says {tuple(shape)}")
    return Shard(local, tuple(tensor.shape), tuple(offset), True, copy, copies)
