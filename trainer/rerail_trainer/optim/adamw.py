"""AdamW, with moments in float32 or, for half their memory, in bfloat16."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rerail_trainer.config import OptimConfig
from rerail_trainer.parallel.shards import local_gradient, local_tensor, zeros_like

from .protocol import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")

_WIDENED_VALUES = 1 << 26
"""Of bfloat16 moments so many are float32 at a time."""


@dataclass(frozen=True)
class _Group:
    """Parameters with the same decay, and their moments, as they lie on this rank."""

    decay: float
    owners: list[nn.Parameter]
    values: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


class AdamW(Optimizer):
    """Decoupled weight decay (Loshchilov and Hutter, 2019) by the fused kernel that torch.optim.AdamW uses.

    Not that class itself: its first use imports the compiler, seconds of every start. The bias correction
    counts training steps, which never skip one, so the moments are all the state there is; they exist from
    the start. Matrices decay, vectors (norms) do not.

    Moments in bfloat16 are widened for the update and rounded at random, up or down in proportion: rounding
    to the nearest would lose what a beta near one adds, as it is less than half of the last digit. The random
    bits follow from the step, so a resumed run draws the same.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig) -> None:
        self._config = config
        self._low = torch.bfloat16 if config.moment_dtype == "bfloat16" else None
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            self.state[parameter] = {key: zeros_like(parameter, self._low) for key in MOMENTS}
        self._groups = [
            self._group(config.weight_decay, [p for p in trained if p.dim() >= 2]),
            self._group(0.0, [p for p in trained if p.dim() < 2]),
        ]

    def reset(self) -> None:
        for moments in self.state.values():
            for moment in moments.values():
                local_tensor(moment).zero_()

    @torch.no_grad()
    def step(self, count: int, rate: float, unless: Tensor) -> None:
        for group in self._groups:
            if not group.owners:
                continue
            gradients = [local_gradient(parameter) for parameter in group.owners]
            if self._low is None:
                self._update(group, gradients, count, rate, unless)
            else:
                self._update_low(group, gradients, count, rate, unless)

    def _update(
        self, group: _Group, gradients: list[Tensor], count: int, rate: float, unless: Tensor
    ) -> None:
        config = self._config
        taken = torch.full((), float(count), dtype=torch.float32, device=group.values[0].device)
        torch._fused_adamw_(
            group.values,
            gradients,
            group.first,
            group.second,
            [],
            [taken] * len(group.values),
            lr=rate,
            beta1=config.beta1,
            beta2=config.beta2,
            weight_decay=group.decay,
            eps=config.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=unless,
        )

    def _update_low(
        self, group: _Group, gradients: list[Tensor], count: int, rate: float, unless: Tensor
    ) -> None:
        generator = torch.Generator(group.values[0].device).manual_seed(count)
        for chunk in _chunks([value.numel() for value in group.values]):
            first, second = (
                [moment.float() for moment in kept[chunk]] for kept in (group.first, group.second)
            )
            part = _Group(group.decay, group.owners[chunk], group.values[chunk], first, second)
            self._update(part, gradients[chunk], count, rate, unless)
            for wide, kept in zip(
                (*first, *second), (*group.first[chunk], *group.second[chunk]), strict=True
            ):
                round_at_random(wide, kept, generator)

    def _group(self, decay: float, owners: Sequence[nn.Parameter]) -> _Group:
        values = [local_tensor(parameter) for parameter in owners]
        first, second = ([local_tensor(self.state[p][key]) for p in owners] for key in MOMENTS)
        return _Group(decay, list(owners), values, first, second)


def round_at_random(wide: Tensor, low: Tensor, generator: torch.Generator) -> None:
    """Writes float32 `wide`, which is overwritten, to bfloat16 `low`: to one of its two neighbours, the
    nearer the likelier, so that the mean is right. What bfloat16 can hold stays as it is.
    """
    bits = wide.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    # A carry out of the lower half is one step of bfloat16, away from zero for either sign.
    bits.add_(noise).bitwise_and_(-(1 << 16))
    low.copy_(wide)


def _chunks(sizes: list[int]) -> Iterator[slice]:
    begin, values = 0, 0
    for index, size in enumerate(sizes):
        if values and values + size > _WIDENED_VALUES:
            yield slice(begin, index)
            begin, values = index, 0
        values += size
    yield slice(begin, len(sizes))
