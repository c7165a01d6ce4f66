"""How one model lies over many ranks, behind one small surface."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rerail_trainer.config import Config
from rerail_trainer.meeting import Meeting
from rerail_trainer.model import Transformer
from rerail_trainer.parallel.cutting import cut_parameters, cuts_of, holders, mark_parts
from rerail_trainer.parallel.expert import spread_experts
from rerail_trainer.parallel.groups import Groups
from rerail_trainer.parallel.mesh import Place, mesh_of
from rerail_trainer.parallel.replicate import ReplicatedGradients
from rerail_trainer.parallel.shards import Shard, holding_of, local_shard
from rerail_trainer.parallel.tensor import join_sequence

WHOLE_GRADIENT_BYTES = 8 << 30
"""FSDP sums up the gradients of a step's micro-batches whole, and sends them once, where they take no more
than this on a rank (float32, before it cuts them). Above, every micro-batch's are cut at once.
"""


class Layout:
    """A model on its ranks. Losses and gradients are sums over ranks: each adds those of what it computed.

    The base is the layout of a model whole on one rank.
    """

    def __init__(
        self, model: Transformer, autocast: torch.dtype | None, place: Place, groups: Groups
    ) -> None:
        self.model, self.place, self.groups = model, place, groups
        self._autocast = autocast
        self._world = tuple(range(place.mesh.world_size))

    @property
    def data_rank(self) -> int:
        """Which part of a batch this rank reads; tensor ranks read the same."""
        return self.place.data

    @property
    def data_size(self) -> int:
        """Into how many parts a batch is cut."""
        return self.place.mesh.data_size

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """This rank's part of the summed loss of a micro-batch, int64 [batch, time] each; float32 scalar."""
        with torch.autocast(tokens.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            return self.model(tokens, targets, documents)  # type: ignore[no-any-return]

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Around every forward and backward pass; after the last of a step gradients are those of all
        ranks.
        """
        yield

    @contextmanager
    def forward_only(self) -> Iterator[None]:
        """Around passes without a backward pass: no gradients, no dropout; then the model is as before."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    def zero_gradients(self) -> None:
        """Ready for the next step."""
        for parameter in self.model.parameters():
            parameter.grad = None

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scales gradients down to a global norm of `limit` (0: not at all) and gives the norm before;
        scalar, the same on all ranks.
        """
        norm = self._norm()
        if limit > 0:
            factor = (limit / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([shard.tensor for shard in self._gradients()], factor)
        return norm

    def sum_over_data(self, tensor: Tensor) -> None:
        """Adds `tensor` up over the ranks that read different data, in place."""
        self.groups.sum(tensor, self.place.data_ranks)

    def _gradients(self) -> list[Shard]:
        return [local_shard(p.grad) for p in self.model.parameters() if p.grad is not None]

    def _norm(self) -> Tensor:
        """Of gradients that every rank has whole."""
        norm: Tensor = torch.linalg.vector_norm(_norms([shard.tensor for shard in self._gradients()]))
        return norm

    def _norm_over_ranks(self) -> Tensor:
        """Of gradients that lie in parts: each part counts once, by the first rank that holds it."""
        own = [
            local_shard(parameter.grad).tensor
            for parameter in self.model.parameters()
            if parameter.grad is not None and local_shard(parameter).first_replica
        ]
        device = local_shard(self.model.norm.weight).tensor.device
        square = _norms(own).square().sum() if own else torch.zeros((), device=device)
        self.groups.sum(square, self._world)
        return square.sqrt()


class Replicated(Layout):
    """Every rank holds all that tensor and expert ranks leave it, and gradients are summed in buckets."""

    def __init__(
        self, model: Transformer, autocast: torch.dtype | None, place: Place, groups: Groups
    ) -> None:
        super().__init__(model, autocast, place, groups)
        whole = model.config.qk_norm == "full"
        self._in_parts = place.mesh.tensor > 1 or place.mesh.expert > 1
        self._buckets = ReplicatedGradients(
            model,
            {
                name: groups.of(holders(name, cuts_of(name, parameter.dim(), place, whole), place))
                for name, parameter in model.named_parameters()
            },
        )

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        if not last:
            yield
            return
        with self._buckets.summed():
            yield

    def zero_gradients(self) -> None:
        self._buckets.zero()

    def _norm(self) -> Tensor:
        return self._norm_over_ranks() if self._in_parts else super()._norm()


class Sharded(Layout):
    """FSDP2: parameters, gradients and optimizer state cut over the ranks of a replica; replicas alike."""

    def __init__(self, model: Transformer, place: Place, groups: Groups, whole_gradients: bool) -> None:
        super().__init__(model, None, place, groups)
        self._once = whole_gradients

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        module: Any = self.model
        module.set_requires_gradient_sync(last or not self._once)
        module.set_requires_all_reduce(last)
        yield
        if last:
            self._sum_over_tensor_ranks()

    @contextmanager
    def forward_only(self) -> Iterator[None]:
        with super().forward_only():
            yield
        # Without a backward pass the outermost parameters would stay gathered.
        module: Any = self.model
        module.reshard()

    def _norm(self) -> Tensor:
        return self._norm_over_ranks()

    def _sum_over_tensor_ranks(self) -> None:
        """What is alike on tensor ranks and FSDP does not know to be: norms and routers inside blocks."""
        if self.place.mesh.tensor == 1:
            return
        alike = [
            local_shard(parameter.grad).tensor
            for parameter in self.model.parameters()
            if parameter.grad is not None and _alike(parameter)
        ]
        flat = torch.cat([gradient.flatten() for gradient in alike])
        self.groups.sum(flat, self.place.tensor_ranks)
        for gradient, total in zip(alike, torch.split(flat, [g.numel() for g in alike]), strict=True):
            gradient.copy_(total.view_as(gradient))


def lay_out(config: Config, meeting: Meeting) -> Layout:
    """Builds the model on this rank's device, or this rank's part of it; its values come later.

    Raises BadConfig for a layout that this world size or model does not allow.
    """
    mesh = mesh_of(config, meeting.world_size)
    place, groups = mesh.at(meeting.identity.rank), Groups(config.collective_seconds)
    norm_whole = config.model.qk_norm == "full"
    low = torch.bfloat16 if config.parallel.compute_dtype == "bfloat16" else None
    # Without memory first, so that no rank ever holds more than its part.
    with torch.device("meta"):
        model = Transformer(config.model)
    cut_parameters(model, place, norm_whole)
    whole_gradients = sum(4 * parameter.numel() for parameter in model.parameters())
    if mesh.tensor > 1:
        join_sequence(model, place, groups.of(place.tensor_ranks), norm_whole)
    if mesh.expert > 1:
        spread_experts(model, groups.of(place.expert_ranks))
    if mesh.shard > 1:
        # Imported here: these modules cost seconds at the start, and only this layout needs them.
        from rerail_trainer.parallel.sharding import shard_model

        shard_model(model, place, groups, low, meeting.device.type)
    model.to_empty(device=meeting.device)
    if config.model.tie:
        model.head.weight = model.embedding.weight
    mark_parts(model, place, norm_whole)
    if mesh.shard > 1:
        return Sharded(model, place, groups, whole_gradients <= WHOLE_GRADIENT_BYTES)
    return (Replicated if mesh.world_size > 1 else Layout)(model, low, place, groups)


def _alike(parameter: Tensor) -> bool:
    holding = holding_of(parameter)
    return holding is not None and holding.copies > 1


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))
