"""How likely a model finds given tokens: batched, padded on the right, in the order asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerail_trainer.model import IGNORED, Transformer

_LOGITS_AT_ONCE = 1 << 26
"""So many logits are turned to float32 at a time: 256 MiB."""


@dataclass(frozen=True)
class Passage:
    """tokens: context and what is scored, at most seq_len + 1; scored: how many of the last ones count."""

    tokens: Sequence[int]
    scored: int


@torch.no_grad()
def log_likelihoods(model: Transformer, passages: Sequence[Passage], batch_tokens: int) -> list[float]:
    """Sum of ln p over the scored tokens of each passage, in nats, in the order of `passages`.

    At most `batch_tokens` tokens, padding with them, go through the model at once, but always one passage.
    """
    model.eval()
    device = model.norm.weight.device
    longest_first = sorted(range(len(passages)), key=lambda index: -len(passages[index].tokens))
    result = [0.0] * len(passages)
    begin = 0
    while begin < len(longest_first):
        width = len(passages[longest_first[begin]].tokens) - 1
        chosen = longest_first[begin : begin + max(1, batch_tokens // max(1, width))]
        inputs, targets = _padded([passages[index] for index in chosen], width)
        sums = token_losses(model.logits(inputs.to(device)), targets.to(device)).sum(dim=1)
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
        tokens = torch.tensor(passage.tokens, dtype=torch.int64)
        length = len(tokens) - 1
        inputs[row, :length] = tokens[:-1]
        targets[row, length - passage.scored : length] = tokens[length + 1 - passage.scored :]
    return inputs, targets


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each token in nats, 0 where the target is IGNORED; logits [batch, time, vocab], targets int64
    [batch, time] -> float64 [batch, time].
    """
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, _LOGITS_AT_ONCE // flat.shape[1])
    parts = [
        F.cross_entropy(some.float(), these, reduction="none").double()
        for some, these in zip(torch.split(flat, rows), torch.split(wanted, rows), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)
