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
from rerail_trainer.parallel.mesh import WHOLE_GRADIENT_BYTES, Place, mesh_of
from rerail_trainer.parallel.replicate import ReplicatedGradients
from rerail_trainer.parallel.shards import Holding, holding_of, local_gradient, local_shard, local_tensor
from rerail_trainer.parallel.tensor import join_sequence


class Layout:
    """A model on its ranks. Losses and gradients are sums over ranks: each adds those of what it computed.

    The base is the layout of a model whole on one rank.
    """

    def __init__(
        self, model: Transformer, autocast: torch.dtype | None, place: Place, groups: Groups
    ) -> None:
        self.model, self.place, self.groups = model, place, groups
        self._autocast = autocast
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._counted = None if place.mesh.whole else self._first_holders()

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
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scales gradients down to a global norm of `limit` (0: not at all) and gives the norm before;
        scalar, the same on all ranks.
        """
        gradients = [local_gradient(parameter) for parameter in self._parameters]
        norm = self._norm(gradients)
        if limit > 0:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def sum_over_data(self, tensor: Tensor) -> None:
        """Adds `tensor` up over the ranks that read different data, in place."""
        self.groups.sum(tensor, self.place.data_ranks)

    def _first_holders(self) -> Tensor:
        """1 for each parameter whose part no rank before this one holds, else 0: a part counts once."""
        first = [float(local_shard(parameter).first_replica) for parameter in self._parameters]
        return torch.tensor(first, device=local_tensor(self._parameters[0]).device)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norms = torch.stack(torch._foreach_norm(gradients))
        if self._counted is None:
            whole: Tensor = torch.linalg.vector_norm(norms)
            return whole
        square = (norms * self._counted).square().sum()
        self.groups.sum(square, tuple(range(self.place.mesh.world_size)))
        return square.sqrt()


class Replicated(Layout):
    """Every rank holds all that tensor and expert ranks leave it, and gradients are summed in buckets."""

    def __init__(
        self, model: Transformer, autocast: torch.dtype | None, place: Place, groups: Groups
    ) -> None:
        super().__init__(model, autocast, place, groups)
        whole = model.config.qk_norm == "full"
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


class Sharded(Layout):
    """FSDP2: parameters, gradients and optimizer state cut over the ranks of a replica; replicas alike."""

    def __init__(self, model: Transformer, place: Place, groups: Groups, whole_gradients: bool) -> None:
        super().__init__(model, None, place, groups)
        self._once = whole_gradients
        self._alike = [p for p in self._parameters if (holding_of(p) or Holding()).copies > 1]

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

    def _sum_over_tensor_ranks(self) -> None:
        """What is alike on tensor ranks and FSDP does not know to be: norms and routers inside blocks."""
        if not self._alike:
            return
        alike = [local_gradient(parameter) for parameter in self._alike]
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
    else:
        # As to_empty, whose empty_like imports sympy for tensors without memory: a part of every start.
        model._apply(  # type: ignore[no-untyped-call]
            lambda t: torch.empty(t.shape, dtype=t.dtype, device=meeting.device)
        )
    if config.model.tie:
        model.head.weight = model.embedding.weight
    mark_parts(model, place, norm_whole)
    if mesh.shard > 1:
        return Sharded(model, place, groups, whole_gradients <= WHOLE_GRADIENT_BYTES)
    return (Replicated if mesh.world_size > 1 else Layout)(model, low, place, groups)
