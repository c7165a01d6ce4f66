"""Weights that lie somewhere, by our names, read box by box; and how a model takes them.

Nothing here holds more than one tensor's part at a time.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.parallel.shards import Shard, local_shard

VOCAB_TENSORS = ("embedding.weight", "head.weight")
"""Tensors with one row per token: the model may have more rows than the file."""
BALANCE = ".feed_forward.balance"
"""End of the name of a bias that not every form keeps; without it, it is zero."""
_MEAN_ROWS = 4096


class Source(Protocol):
    """A whole model's weights. Names and shapes are ours; `read` gives CPU tensors in the stored dtype."""

    origin: str
    """Where this is, for people."""
    config: ModelConfig
    dtype: torch.dtype
    """Of most of the stored weights."""
    shapes: Mapping[str, tuple[int, ...]]
    chats: bool
    """Whether it is known to have been trained on conversations."""

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        """The box `region` (one slice per dimension, with start and stop, step 1) of tensor `name`."""
        ...


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied head is the embedding once more and left out."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


@torch.no_grad()
def take_weights(model: nn.Module, source: Source) -> int:
    """Fills this rank's part of `model` from `source`, cast to the model's dtypes; gives the number of rows
    by which the model's vocabulary is larger. Those rows are the mean of the others (Hewitt, "Initializing
    New Word Embeddings for Pretrained Language Models", 2021), so that no new token outweighs the known.

    BadConfig names all tensors that are missing, left over or of another shape; then nothing is changed.
    """
    shards = {name: local_shard(tensor) for name, tensor in model_tensors(model).items()}
    refuse_other_tensors({name: shard.shape for name, shard in shards.items()}, source)
    added = 0
    for name, shard in shards.items():
        if name in source.shapes:
            added = max(added, shard.shape[0] - source.shapes[name][0])
            _fill(shard, source, name)
        else:
            shard.tensor.zero_()
    return added


def refuse_other_tensors(wanted: Mapping[str, tuple[int, ...]], source: Source) -> None:
    """BadConfig unless `source` has every wanted tensor in its shape, and no other."""
    have = source.shapes
    missing = [name for name in wanted if name not in have and not name.endswith(BALANCE)]
    left_over = [name for name in have if name not in wanted]
    misshapen = [
        f"{name} is {_spoken(have[name])}, the model wants {_spoken(shape)}"
        for name, shape in wanted.items()
        if name in have and not _fits(name, have[name], shape)
    ]
    complaints = [
        f"{title} {_listed(names)}"
        for title, names in (("missing:", missing), ("left over:", left_over), ("other shape:", misshapen))
        if names
    ]
    if complaints:
        raise BadConfig(f"{source.origin} does not hold this model; {'; '.join(complaints)}")


def _fits(name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if name in VOCAB_TENSORS:
        return stored[0] <= wanted[0] and stored[1:] == wanted[1:]
    return stored == wanted


def _fill(shard: Shard, source: Source, name: str) -> None:
    if not shard.tensor.numel():
        return
    region = shard.region
    stored_rows = source.shapes[name][0]
    if shard.shape[0] == stored_rows:
        shard.tensor.copy_(source.read(name, region))
        return
    rows = region[0]
    known = max(0, min(rows.stop, stored_rows) - rows.start)
    if known:
        shard.tensor[:known].copy_(source.read(name, (slice(rows.start, rows.start + known), *region[1:])))
    if known < shard.tensor.shape[0]:
        shard.tensor[known:].copy_(_mean_row(source, name, region[1:]))


def _mean_row(source: Source, name: str, columns: tuple[slice, ...]) -> Tensor:
    """float64 [columns]: the mean over all stored rows, a few thousand in memory at a time."""
    count = source.shapes[name][0]
    total = torch.zeros([part.stop - part.start for part in columns], dtype=torch.float64)
    for begin in range(0, count, _MEAN_ROWS):
        total += source.read(name, (slice(begin, min(begin + _MEAN_ROWS, count)), *columns)).double().sum(0)
    return total / count


def _spoken(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
