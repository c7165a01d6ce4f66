"""FSDP2 over the meshes of a layout: blocks over data ranks, experts over those with the same experts, and
what lies outside the blocks over tensor ranks as well.

FSDP's gradients are sums here, not means: units with meshes of different sizes could not be told apart else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from rerail_trainer.model import Transformer
from rerail_trainer.model.moe import mixtures

from .groups import Groups
from .mesh import Place, Ranks


def shard_model(
    model: Transformer, place: Place, groups: Groups, low: torch.dtype | None, device_type: str
) -> None:
    """Cuts a model that has no values yet. low: the dtype of products; master weights stay as they are."""
    mesh = place.mesh
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    make = _maker(groups, device_type)
    dim = _dim_to_cut(mesh.expert_shard)
    inner = make(place.data_ranks, place.replica_ranks, place.shard_ranks)
    if mesh.expert > 1:
        experts = make(place.same_expert_ranks, place.expert_replica_ranks, place.expert_shard_ranks)
        for mixture in mixtures(model):
            # A unit of its own: its ranks are others than those of the block around it.
            fully_shard(mixture.experts, mesh=experts, mp_policy=policy, shard_placement_fn=dim)
    if low is not None:
        for mixture in mixtures(model):
            # Units of their own, as they stay float32: who gets a token must not turn on a rounded weight.
            fully_shard(mixture.router, mesh=inner, mp_policy=MixedPrecisionPolicy())
    last = len(model.blocks) - 1
    for index, block in enumerate(model.blocks):
        # Backward begins with the last block: it would be gathered again at once.
        again = index < last
        fully_shard(block, mesh=inner, mp_policy=policy, reshard_after_forward=again, shard_placement_fn=dim)
    outer = inner
    if mesh.tensor > 1:
        outer = make(tuple(range(mesh.world_size)), place.replica_ranks, place.block_ranks)
    if not model.config.tie:
        fully_shard(model.embedding, mesh=outer, mp_policy=policy)
    fully_shard(model, mesh=outer, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _maker(groups: Groups, device_type: str) -> Callable[[Ranks, Ranks, Ranks], DeviceMesh]:
    def make(ranks: Ranks, replicas: Ranks, shards: Ranks) -> DeviceMesh:
        """`ranks` as replicas x shards; the latter two are the row and column through this rank."""
        if len(replicas) == 1:
            return DeviceMesh.from_group(groups.of(shards), device_type, mesh_dim_names=("shard",))
        table: Any = torch.tensor(ranks).view(len(replicas), len(shards))
        both = [groups.of(replicas), groups.of(shards)]
        return DeviceMesh.from_group(both, device_type, table, mesh_dim_names=("replicate", "shard"))

    return make


def _dim_to_cut(shards: int) -> Callable[[nn.Parameter], Shard | None]:
    """Rows, and of a stack of experts whole ones where there are enough of them, else rows of each."""

    def dim_of(parameter: nn.Parameter) -> Shard | None:
        stacked = parameter.dim() == 3
        return (
            Shard(1) if stacked and parameter.shape[0] < shards and parameter.shape[1] % shards == 0 else None
        )

    return dim_of
