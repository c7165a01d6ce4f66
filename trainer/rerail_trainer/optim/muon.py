"""Muon: momentum whose matrices are made orthogonal, for the matrices of the blocks; AdamW for all else."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rerail_trainer.config import OptimConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.parallel.cutting import is_expert
from rerail_trainer.parallel.layouts import Layout
from rerail_trainer.parallel.mesh import Place, Ranks
from rerail_trainer.parallel.shards import local_gradient, local_shard, local_tensor, zeros_like

from .adamw import AdamW
from .orthogonal import orthogonalised
from .protocol import Optimizer
from .whole import Box, Round

MOMENTUM = "momentum"
_ROUND_VALUES = 1 << 26
"""A rank works on so many values at once, or on one matrix."""


@dataclass(frozen=True)
class _Matrix:
    """One matrix of a parameter, all of it or one of a stack of experts, as far as it lies on this rank."""

    parameter: nn.Parameter
    index: int | None
    value: Tensor
    momentum: Tensor

    @property
    def slope(self) -> Tensor:
        gradient = local_gradient(self.parameter)
        return gradient if self.index is None else gradient[self.index]


@dataclass(frozen=True)
class _Team:
    """Ranks that share the work on some matrices. copies: each has them whole, else each has a part."""

    ranks: Ranks
    copies: bool


class Muon(Optimizer):
    """Jordan et al., 2024: the update of a matrix is its momentum (Nesterov's form) with all singular values
    brought near one, times sqrt(max(1, rows / columns)), that of its reference implementation.

    Only matrices of blocks: the embedding, the head, norms and routers take AdamW. Weight decay is decoupled
    and goes by Muon's own rate, muon_lr, which follows the same schedule as lr. A matrix is worked on whole,
    whichever way it is cut, and by one rank of those that hold it; in bfloat16 on a GPU, in float32 on a CPU.
    """

    def __init__(self, layout: Layout, config: OptimConfig) -> None:
        """Called by all ranks together: they tell each other which parts they hold."""
        if config.lr <= 0:
            raise BadConfig("optim.name=muon takes its schedule from optim.lr, which must be above 0")
        self._config = config
        named = [(name, p) for name, p in layout.model.named_parameters() if p.requires_grad]
        self._matrices = {name: p for name, p in named if is_matrix(name, p)}
        self._rest = AdamW([p for name, p in named if name not in self._matrices], config)
        own = {p: {MOMENTUM: zeros_like(p)} for p in self._matrices.values()}
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {**self._rest.state, **own}
        self._momenta = {p: local_tensor(state[MOMENTUM]) for p, state in own.items()}
        self._rounds = list(self._cut_into_rounds(layout))

    def reset(self) -> None:
        self._rest.reset()
        for momentum in self._momenta.values():
            momentum.zero_()

    @torch.no_grad()
    def step(self, count: int, rate: float, unless: Tensor) -> None:
        self._rest.step(count, rate, unless)
        stay = unless != 0
        rate *= self._config.muon_lr / self._config.lr
        for parameter, momentum in self._momenta.items():
            # Towards itself where the step is not taken, as the gradient may hold what no factor makes zero.
            target = torch.where(stay, momentum, local_gradient(parameter))
            momentum.lerp_(target, 1 - self._config.muon_momentum)
        for matrices, round_ in self._rounds:
            updates = [self._update(matrix) for matrix in matrices]
            scale = rate * math.sqrt(max(1.0, round_.rows / round_.columns))
            for matrix, update in zip(matrices, round_.run(updates, orthogonalised), strict=True):
                moved = (matrix.value * (1 - rate * self._config.weight_decay)).sub_(update, alpha=scale)
                matrix.value.copy_(torch.where(stay, matrix.value, moved))

    def _update(self, matrix: _Matrix) -> Tensor:
        """What is to be made orthogonal: the gradient, looked at from the momentum on."""
        update = matrix.slope.lerp(matrix.momentum, self._config.muon_momentum)
        return update.bfloat16() if update.is_cuda else update

    def _cut_into_rounds(self, layout: Layout) -> Iterator[tuple[list[_Matrix], Round]]:
        """All matrices in rounds of one team and one shape, the same on every rank of a team."""
        alike: dict[tuple[_Team, int, int], list[_Matrix]] = defaultdict(list)
        for name, parameter in self._matrices.items():
            rows, columns = local_shard(parameter).shape[-2:]
            team = _team(name, parameter, layout.place)
            alike[team, rows, columns] += _matrices(parameter, self._momenta[parameter])
        for (team, rows, columns), matrices in alike.items():
            group, members = layout.groups.of(team.ranks), len(team.ranks)
            boxes = _boxes(matrices, team, group)
            share = max(min(_ROUND_VALUES // (rows * columns), -(-len(matrices) // members)), 1)
            own = team.ranks.index(layout.place.rank)
            for begin in range(0, len(matrices), share * members):
                part = slice(begin, begin + share * members)
                yield matrices[part], Round(group, own, rows, columns, boxes[part], share, team.copies)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is Muon's."""
    return name.startswith("blocks.") and parameter.dim() >= 2 and ".router." not in name


def _team(name: str, parameter: Any, place: Place) -> _Team:
    mesh, stacked = place.mesh, parameter.dim() == 3
    spread = is_expert(name) and mesh.expert > 1
    by_fsdp = hasattr(parameter, "device_mesh")
    if by_fsdp and not stacked:
        return _Team(place.block_ranks, copies=False)
    if by_fsdp and parameter.placements[-1].dim > 0:
        shards = place.expert_shard_ranks
        return _Team(tuple(other for rank in shards for other in mesh.at(rank).tensor_ranks), copies=False)
    if mesh.tensor > 1:
        return _Team(place.tensor_ranks, copies=False)
    if by_fsdp:
        return _Team(place.expert_replica_ranks if spread else place.replica_ranks, copies=True)
    return _Team(place.same_expert_ranks if spread else place.data_ranks, copies=True)


def _matrices(parameter: nn.Parameter, momentum: Tensor) -> list[_Matrix]:
    value = local_tensor(parameter)
    if value.dim() == 2:
        return [_Matrix(parameter, None, value, momentum)]
    return [_Matrix(parameter, index, value[index], momentum[index]) for index in range(len(value))]


def _boxes(matrices: list[_Matrix], team: _Team, group: Any) -> list[list[Box]]:
    """For each matrix the part of every member."""
    regions = [local_shard(matrix.parameter).region for matrix in matrices]
    own: list[Box] = [(region[-2], region[-1]) for region in regions]
    if team.copies or len(team.ranks) == 1:
        return [[box] * len(team.ranks) for box in own]
    told: list[Any] = [None] * len(team.ranks)
    dist.all_gather_object(told, own, group=group)
    return [list(parts) for parts in zip(*told, strict=True)]
