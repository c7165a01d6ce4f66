"""Cross-entropy of an output head, a chunk of tokens at a time: the logits never exist whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Target of a position that has no loss."""

_LOGITS_AT_ONCE = 1 << 27
_ROWS = 256

Softmax = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def softmax_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and its slope by the logits, in their dtype. logits: [n, vocab]; targets: int64 [n]."""
    real = targets != IGNORED
    wanted = torch.where(real, targets, 0)[:, None]
    logs = logits.log_softmax(-1, dtype=_wide(logits.dtype))
    loss = -torch.where(real, logs.gather(-1, wanted)[:, 0], 0.0).sum()
    slope = logs.exp_().scatter_add_(-1, wanted, logs.new_full(wanted.shape, -1.0))
    return loss, slope.mul_(real[:, None]).to(logits.dtype)


def summed_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax = softmax_loss, rows: int = 0
) -> Tensor:
    """Sum over targets != IGNORED of -log softmax(hidden @ weight^T)[target]; float32 scalar.

    hidden: [..., dim]; weight: [vocab, dim]; targets: int64 [...]. Products in the autocast dtype or that of
    `hidden`, all else in float32 (or float64). Gradients are found in the forward pass, chunk by chunk, so
    that no product is computed twice. rows: tokens per chunk; 0 takes as many as make half a GiB of float32
    logits.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    rows = rows or max(_ROWS, _LOGITS_AT_ONCE // len(weight) // _ROWS * _ROWS)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _ChunkedLoss.apply(
            hidden.flatten(0, -2).to(dtype), weight, targets.flatten(), (softmax, rows)
        )
        return loss


class _ChunkedLoss(torch.autograd.Function):
    """hidden [n, dim], weight [vocab, dim], targets [n] -> sum of losses."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, way: tuple[Softmax, int]
    ) -> Tensor:
        softmax, rows = way
        wide = _wide(hidden.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        low = weight.detach().to(hidden.dtype)
        for_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(hidden), rows):
            chunk = slice(begin, begin + rows)
            losses, slope = softmax(hidden[chunk] @ low.t(), targets[chunk])
            loss += losses
            if for_hidden is not None:
                torch.mm(slope, low, out=for_hidden[chunk])
            if for_weight is not None:
                for_weight += slope.t() @ hidden[chunk]
        # No saved tensors: the backward pass gives them away, scaled where they lie, as a second copy of the
        # weight's gradient would come when memory is fullest.
        ctx.gradients = for_hidden, for_weight
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was given its backward pass before: compute it anew")
        for_hidden, for_weight = ctx.gradients
        ctx.gradients = None
        if for_hidden is not None:
            for_hidden.mul_(gradients[0])
        if for_weight is not None:
            for_weight = for_weight.mul_(gradients[0]).to(ctx.weight_dtype)
        return for_hidden, for_weight, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
