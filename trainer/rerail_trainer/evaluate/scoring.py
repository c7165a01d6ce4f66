"""How likely a model finds given tokens: batched, padded on the right, in the order asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rerail_trainer.model import IGNORED, Transformer

from .head import head_sees

_LOGITS_AT_ONCE = 1 << 26
"""So many logits are turned to float32 at a time: 256 MiB."""


@dataclass(frozen=True)
class Passage:
    """tokens: context and what is scored, at most seq_len + 1; scored: how many of the last ones count."""

    tokens: Sequence[int] | NDArray[np.int64]
    scored: int


@torch.no_grad()
def log_likelihoods(model: Transformer, passages: Sequence[Passage], batch_tokens: int) -> list[float]:
    """Sum of ln p over the scored tokens of each passage, in nats, in the order of `passages`.

    At most `batch_tokens` tokens, padding with them, go through the model at once, but always one passage.
    """
    model.eval()
    longest_first = sorted(range(len(passages)), key=lambda index: -len(passages[index].tokens))
    result = [0.0] * len(passages)
    begin = 0
    while begin < len(longest_first):
        width = len(passages[longest_first[begin]].tokens) - 1
        chosen = longest_first[begin : begin + max(1, batch_tokens // max(1, width))]
        inputs, targets = _padded([passages[index] for index in chosen], width)
        sums = token_losses(model, inputs, targets).sum(dim=1)
        for index, value in zip(chosen, sums.tolist(), strict=True):
            result[index] = -value
        begin += len(chosen)
    return result


def _padded(passages: Sequence[Passage], width: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [passages, width]. Attention looks back only, so what stands to the right of
    a passage cannot reach it; targets that do not count are IGNORED.
    """
    inputs = torch.zeros(len(passages), width, dtype=torch.int64)
    targets = torch.full((len(passages), width), IGNORED, dtype=torch.int64)
    for row, passage in enumerate(passages):
        tokens = torch.from_numpy(np.asarray(passage.tokens, dtype=np.int64))
        length = len(tokens) - 1
        inputs[row, :length] = tokens[:-1]
        targets[row, length - passage.scored : length] = tokens[length + 1 - passage.scored :]
    return inputs, targets


def token_losses(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Loss of each token in nats, 0 where the target is IGNORED. Both: int64 [batch, time] -> float64, the
    same shape, on the model's device.
    """
    device = model.norm.weight.device
    inputs, targets = inputs.to(device), targets.to(device)
    counted = targets != IGNORED
    with head_sees(model, lambda hidden: hidden[counted][None]):
        logits = model.logits(inputs)[0]
    rows = max(1, _LOGITS_AT_ONCE // logits.shape[1])
    parts = [
        F.cross_entropy(some.float(), wanted, reduction="none").double()
        for some, wanted in zip(torch.split(logits, rows), torch.split(targets[counted], rows), strict=True)
    ]
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    losses[counted] = torch.cat(parts)
    return losses
