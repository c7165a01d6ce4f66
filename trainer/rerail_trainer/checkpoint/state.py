"""What a checkpoint holds of one rank: its parts of model and optimizer, and its random number generators."""

import base64
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rerail_trainer.optim import Optimizer
from rerail_trainer.parallel.shards import Shard, local_shard

from .dtypes import KINDS
from .tensorfile import Part

MODEL, OPTIMIZER = "model.", "optim."


@dataclass(frozen=True)
class TrainingState:
    """The live objects that are saved and restored."""

    model: nn.Module
    optimizer: Optimizer

    def known(self) -> list[int]:
        """Equal for two calls when the state consists of the same tensors, whatever their values."""
        return [id(tensor) for _, tensor, _ in _saved(self)]


def device_of(state: TrainingState) -> torch.device:
    """Where the state lies on this rank."""
    return next(iter(state.model.parameters())).device


def parts_of(state: TrainingState, rank: int, world_size: int) -> list[tuple[Part, Tensor, bool]]:
    """What this rank saves: each part, its live memory, and whether that is a buffer, which a forward pass
    may change.

    What all ranks hold is saved by one of them, chosen to even out the bytes; what some hold alike, by those
    in turn.
    """
    shards = [(name, local_shard(tensor), early) for name, tensor, early in _saved(state)]
    writers = _writers([(name, shard) for name, shard, _ in shards if not shard.sharded], world_size)
    return [
        (Part(name, shard.shape, shard.offset, tuple(shard.tensor.shape), KINDS[shard.tensor.dtype]), *rest)
        for turn, (name, shard, early) in enumerate(shards)
        if (
            turn % shard.copies == shard.copy and shard.tensor.numel()
            if shard.sharded
            else writers[name] == rank
        )
        for rest in ((shard.tensor, early),)
    ]


def named_tensors(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is saved, with its name: parameters, persistent buffers, optimizer state."""
    for name, tensor, _ in _saved(state):
        yield name, tensor


def random_state() -> dict[str, Any]:
    """The states of all generators of this process, in JSON."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in np.asarray(keys)], int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    }


def set_random_state(saved: dict[str, Any]) -> None:
    """Puts the generators of this process back; a GPU state is ignored where there is no GPU."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(saved["torch"]))
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(saved["cuda"]))


def seed_random_state(seed: int, step: int, rank: int) -> None:
    """Starts the generators of this process afresh, differently for each step and rank."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _saved(state: TrainingState) -> Iterator[tuple[str, Tensor, bool]]:
    seen: set[int] = set()
    for name, tensor in state.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a tied head is the embedding once more
            seen.add(id(tensor))
            yield MODEL + name, tensor, not isinstance(tensor, nn.Parameter)
    for name, parameter in state.model.named_parameters():
        for key, moment in sorted(state.optimizer.state[parameter].items()):
            yield f"{OPTIMIZER}{name}.{key}", moment, False


def _writers(shared: list[tuple[str, Shard]], world_size: int) -> dict[str, int]:
    """Largest first, each to the rank with the least so far: every rank comes to the same table by itself."""
    loads: dict[int, int] = defaultdict(int)
    writers = {}
    for name, shard in sorted(shared, key=lambda item: (-item[1].tensor.nbytes, item[0])):
        writer = min(range(world_size), key=lambda rank: (loads[rank], rank))
        loads[writer] += shard.tensor.nbytes
        writers[name] = writer
    return writers


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
