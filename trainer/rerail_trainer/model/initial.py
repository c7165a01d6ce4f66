"""First values: a function of the seed, the parameter's name and the place in it, on any number of ranks."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
    buffers 0. As many threads draw as torch may use: which one draws what makes no difference.
    """
    layers: int = model.config.layers  # type: ignore[assignment,union-attr]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, parameter in model.named_parameters():
            shard = local_shard(parameter)
            if parameter.dim() < 2:
                shard.tensor.fill_(1.0)
                continue
            deviation = 1.0 / math.sqrt(shard.shape[-1])
            if name.endswith(_RESIDUAL):
                deviation /= math.sqrt(2 * layers)
            list(pool.map(Draw.into_place, draws_of(shard, f"{seed}/{name}", deviation)))
    for buffer in model.buffers():
        buffer.zero_()


@torch.no_grad()
def fill_roughly(model: nn.Module) -> None:
    """Values good enough for a rehearsal, fast on a GPU. They come from torch's own generator."""
    for parameter in model.parameters():
        local = local_shard(parameter).tensor
        if parameter.dim() < 2:
            local.fill_(1.0)
        else:
            local.normal_(0.0, 0.02)
    for buffer in model.buffers():
        buffer.zero_()


@dataclass(frozen=True)
class Draw:
    """Some rows of a matrix: of those drawn together, `rows` and `columns` go to `target`."""

    key: str
    shape: tuple[int, int]
    deviation: float
    rows: slice
    columns: slice
    target: Tensor

    def values(self) -> Tensor:
        """Drawn on the CPU in float32, so that every device and dtype starts from the same values."""
        seed = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        return torch.empty(self.shape, dtype=torch.float32).normal_(0.0, self.deviation, generator=generator)

    def into_place(self) -> None:
        """Writes them to the target."""
        self.target.copy_(self.values()[self.rows, self.columns])


def draws_of(shard: Shard, key: str, deviation: float) -> Iterator[Draw]:
    """What fills a part of a matrix, or of a stack of matrices (experts)."""
    *stack, rows, columns = shard.region
    height, width = shard.shape[-2:]
    step = max(1, _DRAWN_AT_ONCE // width)
    for place in itertools.product(*(range(part.start, part.stop) for part in stack)):
        matrix = shard.tensor[tuple(at - part.start for at, part in zip(place, stack, strict=True))]
        for begin in range(rows.start // step * step, rows.stop, step):
            end = min(begin + step, height)
            first, last = max(begin, rows.start), min(end, rows.stop)
            yield Draw(
                key="/".join(map(str, (key, *place, begin))),
                shape=(end - begin, width),
                deviation=deviation,
                rows=slice(first - begin, last - begin),
                columns=columns,
                target=matrix[first - rows.start : last - rows.start],
            )
