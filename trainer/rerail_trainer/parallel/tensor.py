"""Tensor parallelism with the sequence cut between products (Korthikanti et al., 2022), on plain tensors.

Between blocks a tensor rank holds its part of every sequence. Attention and feed-forward gather the whole
sequence, work with this rank's heads or inner features, and sum their parts up while cutting it again. Every
rank's loss is that of its own positions, so the loss of all is the sum over all ranks, and every
collective's gradient is its transpose: a parameter that tensor ranks hold alike gets a part of its gradient
on each of them.

The model knows nothing of this: hooks on its modules gather, scatter and cut.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rerail_trainer.model.layers import Norm

from .mesh import Place


def join_sequence(model: nn.Module, place: Place, group: Any, norm_whole: bool) -> None:
    """Makes `model`, whose parameters are this tensor rank's parts, work together with those of its group."""
    size, index = place.mesh.tensor, place.tensor

    def own(positions: Tensor) -> Tensor:
        return positions.chunk(size, dim=1)[index]

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return _Gathered.apply(inputs[0], group), *inputs[1:]

    def scatter(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return _Scattered.apply(output, group)
        mixed, routed = output
        # Every tensor rank has the same penalty, of which each counts its part.
        return _Scattered.apply(mixed, group), routed._replace(penalty=routed.penalty / size)

    module: Any = model
    module.embedding.register_forward_pre_hook(lambda _, inputs: (own(inputs[0]),))
    module.head.register_forward_pre_hook(lambda _, inputs: (inputs[0], *map(own, inputs[1:])))
    for block in module.blocks:
        for part in (block.attention, block.feed_forward):
            part.register_forward_pre_hook(gather)
            part.register_forward_hook(scatter)
        if norm_whole:
            block.attention.query_norm = SplitNorm(block.attention.query_norm, size, group)
            block.attention.key_norm = SplitNorm(block.attention.key_norm, size, group)


class SplitNorm(Norm):
    """RMSNorm over a dimension of which every tensor rank holds an equal part; likewise the weight."""

    def __init__(self, whole: Norm, parts: int, group: Any) -> None:
        super().__init__(0, whole.eps or 0.0)
        self.weight, self._parts, self._group = whole.weight, parts, group

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim / parts] -> the same shape and dtype; squares are summed in float32."""
        wide = x.float()
        squares = _Summed.apply(wide.square().mean(-1, keepdim=True), self._group) / self._parts
        normed: Tensor = wide * (squares + self.eps).rsqrt() * self.weight.float()
        return normed.to(x.dtype)


class _Gathered(torch.autograd.Function):
    """[batch, time / size, dim] of each rank -> [batch, time, dim] on all; the gradient is summed and cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return scattered(gradients[0], ctx.group), None


class _Scattered(torch.autograd.Function):
    """[batch, time, dim], a part of a sum on each rank -> [batch, time / size, dim] of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return scattered(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gathered(gradients[0], ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum over ranks; as every rank uses it, so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def gathered(x: Tensor, group: Any) -> Tensor:
    """[batch, time / size, dim] of each rank -> [batch, time, dim]."""
    size = dist.get_world_size(group)
    parts = x.new_empty(size, *x.shape)
    dist.all_gather_into_tensor(parts.flatten(0, 1), x.contiguous(), group=group)
    return parts.transpose(0, 1).flatten(1, 2)


def scattered(x: Tensor, group: Any) -> Tensor:
    """[batch, time, dim] of each rank -> this rank's [batch, time / size, dim] of their sum."""
    size = dist.get_world_size(group)
    parts = x.view(len(x), size, -1, x.shape[-1]).transpose(0, 1).contiguous()
    own = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(own, parts.flatten(0, 1), group=group)
    return own
