"""How one model lies over many ranks: replicated (DDP) or sharded (FSDP2), behind one small surface."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import ModelConfig, ParallelConfig
from .meeting import Meeting
from .model import Transformer


class Layout:
    """A model placed on the ranks. `model` is the bare module, whose parameter names the checkpoint uses."""

    def __init__(self, model: Transformer, wrapped: nn.Module, autocast: torch.dtype | None) -> None:
        self.model, self._wrapped, self._autocast = model, wrapped, autocast

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Summed loss of one micro-batch; float32 scalar."""
        if self._autocast is None:
            return self._wrapped(tokens, targets)  # type: ignore[no-any-return]
        with torch.autocast(tokens.device.type, dtype=self._autocast):
            return self._wrapped(tokens, targets)  # type: ignore[no-any-return]

    def gradients_shared(self, last: bool) -> AbstractContextManager[Any]:
        """Within: gradients are averaged over ranks in the backward pass if `last`, else only summed locally."""
        if isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext() if last else self._wrapped.no_sync()
        if hasattr(self._wrapped, "set_requires_gradient_sync"):
            return _sync_of_fsdp(self._wrapped, last)
        return nullcontext()

    def clip(self, limit: float) -> Tensor:
        """Scales gradients down to a global norm of `limit` (0: not at all) and gives the norm before; scalar."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if limit > 0:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm


def lay_out(config: ModelConfig, parallel: ParallelConfig, meeting: Meeting) -> Layout:
    """Builds the model without memory, cuts it, then gives it memory on this rank's device; values come later."""
    with torch.device("meta"):
        model = Transformer(config)
    low = torch.bfloat16 if parallel.compute_dtype == "bfloat16" else None
    if parallel.mode == "fsdp":
        _shard(model, meeting, low)
        _allocate(model, config, meeting.device)
        return Layout(model, model, autocast=None)
    _allocate(model, config, meeting.device)
    if meeting.world_size == 1:
        return Layout(model, model, low)
    on_gpu = meeting.device.type == "cuda"
    wrapped = DistributedDataParallel(
        model,
        device_ids=[meeting.device.index] if on_gpu else None,
        gradient_as_bucket_view=True,
        # Every rank fills the same values from the seed or the checkpoint, so nothing needs to travel here.
        init_sync=False,
    )
    return Layout(model, wrapped, low)


def _shard(model: Transformer, meeting: Meeting, low: torch.dtype | None) -> None:
    # Imported here: the DTensor modules cost seconds at start, and only this mode needs them.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(meeting.device.type, (meeting.world_size,), mesh_dim_names=("shard",))
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _allocate(model: Transformer, config: ModelConfig, device: torch.device) -> None:
    model.to_empty(device=device)
    if config.tie:
        model.head.weight = model.embedding.weight


@contextmanager
def _sync_of_fsdp(module: Any, last: bool) -> Iterator[None]:
    module.set_requires_gradient_sync(last)
    yield
