"""First values: a function of the seed, the parameter's name and the place in it, on any number of ranks."""

import hashlib
import itertools
import math

import torch
from torch import Tensor, nn

from rerail_trainer.parallel.shards import Shard, local_shard

_DRAWN_AT_ONCE = 1 << 16
"""Whole rows of about so many values come from one generator: what a small part draws in vain stays small."""

_RESIDUAL = ("attention.out.weight", "feed_forward.down.weight", "shared.down.weight", "experts.down")
"""What is added to the residual stream."""


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Gives every parameter and buffer its first value; a rank draws no more than its own parts need.

    Normal with deviation 1/sqrt(inputs); residual outputs divided by sqrt(2 layers) besides; norms are 1,
    buffers 0.
    """
    layers = model.config.layers  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        shard = local_shard(parameter)
        if parameter.dim() < 2:
            shard.tensor.fill_(1.0)
            continue
        deviation = 1.0 / math.sqrt(shard.shape[-1])
        if name.endswith(_RESIDUAL):
            deviation /= math.sqrt(2 * layers)  # type: ignore[operator]
        draw(shard, f"{seed}/{name}", deviation)
    for buffer in model.buffers():
        buffer.zero_()


def draw(shard: Shard, key: str, deviation: float) -> None:
    """Fills a part of a matrix, or of a stack of matrices (experts), with normal values."""
    *stack, rows, columns = shard.region
    height, width = shard.shape[-2:]
    step = max(1, _DRAWN_AT_ONCE // width)
    for place in itertools.product(*(range(part.start, part.stop) for part in stack)):
        target = shard.tensor[tuple(at - part.start for at, part in zip(place, stack, strict=True))]
        for begin in range(rows.start // step * step, rows.stop, step):
            end = min(begin + step, height)
            values = _normal(f"{key}/{'/'.join(map(str, (*place, begin)))}", (end - begin, width), deviation)
            first, last = max(begin, rows.start), min(end, rows.stop)
            target[first - rows.start : last - rows.start] = values[first - begin : last - begin, columns]


def _normal(key: str, shape: tuple[int, int], deviation: float) -> Tensor:
    """Drawn on the CPU in float32, so that every device and dtype starts from the same values."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, deviation, generator=generator)
