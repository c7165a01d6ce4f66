"""How one model lies over many ranks: replicated (ddp) or sharded (fsdp), behind one small surface."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig, ParallelConfig
from rerail_trainer.meeting import Meeting
from rerail_trainer.model import Transformer
from rerail_trainer.parallel.replicate import ReplicatedGradients


class Layout:
    """A model placed on one rank alone; the base of the layouts over many."""

    gradient_factor = 1.0
    """By what the loss is to be multiplied so that gradients come out as sums over ranks."""

    def __init__(self, model: Transformer, autocast: torch.dtype | None) -> None:
        self.model, self._autocast = model, autocast

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Summed loss of one micro-batch; float32 scalar."""
        words = (tokens, targets) if documents is None else (tokens, targets, documents)
        if self._autocast is None:
            return self.model(*words)  # type: ignore[no-any-return]
        with torch.autocast(tokens.device.type, dtype=self._autocast):
            return self.model(*words)  # type: ignore[no-any-return]

    def backward(self, last: bool) -> AbstractContextManager[None]:
        """Around every backward pass; after the last of a step gradients are those of all ranks."""
        return nullcontext()

    def zero_gradients(self) -> None:
        """Ready for the next step."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def clip(self, limit: float) -> Tensor:
        """Scales gradients down to a global norm of `limit` (0: not at all) and gives the norm before;
        scalar.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if limit > 0:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm


class Replicated(Layout):
    """The whole model on every rank."""

    def __init__(self, model: Transformer, autocast: torch.dtype | None) -> None:
        super().__init__(model, autocast)
        self._gradients = ReplicatedGradients(model)

    def backward(self, last: bool) -> AbstractContextManager[None]:
        return self._gradients.summed() if last else nullcontext()

    def zero_gradients(self) -> None:
        self._gradients.zero()


class Sharded(Layout):
    """FSDP2: parameters, gradients and optimizer state cut over all ranks; it averages gradients."""

    def __init__(self, model: Transformer, world_size: int) -> None:
        super().__init__(model, autocast=None)
        self.gradient_factor = float(world_size)

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        module: Any = self.model
        module.set_requires_gradient_sync(last)
        yield


def lay_out(config: ModelConfig, parallel: ParallelConfig, meeting: Meeting) -> Layout:
    """Builds the model on this rank's device, or this rank's part of it; its values come later."""
    low = torch.bfloat16 if parallel.compute_dtype == "bfloat16" else None
    if parallel.mode == "fsdp":
        return Sharded(_shard(config, meeting, low), meeting.world_size)
    with meeting.device:
        model = Transformer(config)
    return Replicated(model, low) if meeting.world_size > 1 else Layout(model, low)


def _shard(config: ModelConfig, meeting: Meeting, low: torch.dtype | None) -> Transformer:
    # Imported here: these modules cost seconds at the start, and only this mode needs them.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Without memory first, so that no rank ever holds the whole.
    with torch.device("meta"):
        model = Transformer(config)
    mesh = init_device_mesh(meeting.device.type, (meeting.world_size,), mesh_dim_names=("shard",))
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=meeting.device)
    if config.tie:
        model.head.weight = model.embedding.weight
    return model
