"""Which part of a tensor lies on this rank: the one place that knows how DTensors are cut."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The local part of a tensor.

    tensor: the memory itself, not a copy; offset: where it begins in the whole; first_replica: false where
    another rank holds the same part and comes before this one; sharded: false for a tensor that all ranks
    hold.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    sharded: bool
    first_replica: bool

    @property
    def region(self) -> tuple[slice, ...]:
        """Index of this part in the whole tensor."""
        sizes = self.tensor.shape
        return tuple(slice(begin, begin + size) for begin, size in zip(self.offset, sizes, strict=True))


@torch.no_grad()
def local_shard(tensor: Tensor) -> Shard:
    """The part of `tensor` on this rank; a plain tensor is its own only part."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        plain = tensor.detach()
        return Shard(plain, tuple(plain.shape), (0,) * plain.dim(), sharded=False, first_replica=True)
    # Imported here: the DTensor modules cost seconds, and a DDP run needs none of them.
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        raise TypeError(f"{type(tensor).__name__} has a mesh but is no DTensor")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    coordinate = mesh.get_coordinate() or []
    replicas = [
        at for at, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate()
    ]
    local = tensor.to_local().detach()
    if tuple(local.shape) != tuple(shape):
        raise RuntimeError(f"local part is {tuple(local.shape)}, its placement says {tuple(shape)}")
    return Shard(local, tuple(tensor.shape), tuple(offset), sharded=True, first_replica=not any(replicas))
