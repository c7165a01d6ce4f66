"""What a test has to do inside a rank: called by name in the forked process, before the trainer's own entry."""

import json
import os

import torch
from torch import Tensor

from rerail_trainer import loop
from rerail_trainer.checkpoint.state import TrainingState, named_tensors
from rerail_trainer.parallel import layouts
from rerail_trainer.parallel.shards import local_shard

POISONED_STEP, POISONED_RANK = 3, 1


def poison_one_rank() -> None:
    """At one step the loss of one rank alone is not a number; every rank prints what the step changed on it."""
    real = loop.update

    def update(run: loop.Run, step: int) -> Tensor:
        if step + 1 != POISONED_STEP:
            return real(run, step)
        before = _values(run)
        if run.meeting.identity.rank == POISONED_RANK:
            loss = run.layout.loss
            run.layout.loss = lambda *inputs: loss(*inputs) * torch.nan  # type: ignore[method-assign]
        measured = real(run, step)
        changed = [name for name, value in _values(run).items() if not torch.equal(value, before[name])]
        os.write(1, (json.dumps({"finite": measured[2].item(), "changed": changed}) + "\n").encode())
        return measured

    loop.update = update


def send_gradients_of_every_micro_batch() -> None:
    """As for a model whose gradients are too large to be kept whole."""
    layouts.WHOLE_GRADIENT_BYTES = 0


def _values(run: loop.Run) -> dict[str, Tensor]:
    state = TrainingState(run.layout.model, run.optimizer)
    return {name: local_shard(tensor).tensor.clone() for name, tensor in named_tensors(state)}
