"""Expert parallelism: tokens travel to the rank that holds their expert, and their outputs travel back.

Two all-to-all exchanges each way of a block (Lepikhin et al., 2020), without a capacity: no token is dropped,
so the sizes of the exchange differ from pass to pass and have to be known on the host, the one
synchronisation of a block.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rerail_trainer.model.moe import Experts, Moved, mixtures

from .groups import exchanged


def spread_experts(model: nn.Module, group: Any) -> None:
    """Lets the mixtures of `model`, which hold this rank's experts, send tokens to those of the group."""
    for mixture in mixtures(model):
        mixture.dispatch = ExpertExchange(group)


class ExpertExchange:
    """Stands in for `dispatch_here`: runs sorted tokens through experts that are spread over a group."""

    def __init__(self, group: Any) -> None:
        self._group, self._size = group, dist.get_world_size(group)

    def __call__(self, experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
        """tokens: [n, dim], those of the first expert first; counts: int64 [experts of all ranks];
        -> [n, dim].
        """
        sent = counts.view(self._size, -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        outward, inward = torch.stack((sent, received)).sum(-1).tolist()
        arrived = _Exchanged.apply(tokens, outward, inward, self._group)
        # They arrive rank after rank, sorted by expert within each; experts want them sorted by expert alone.
        labels = torch.arange(received.shape[1], device=tokens.device).repeat(self._size)
        labels = labels.repeat_interleave(received.flatten(), output_size=sum(inward))
        order = labels.to(torch.int16).argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        outputs = experts(Moved.apply(arrived, order, back, 1), received.sum(0))
        return _Exchanged.apply(Moved.apply(outputs, back, order, 1), inward, outward, self._group)  # type: ignore[no-any-return]


class _Exchanged(torch.autograd.Function):
    """`exchanged`; its gradient travels back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return exchanged(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None
