"""AdamW with and without decay, and a learning rate that is a function of the step alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rerail_trainer.config import OptimConfig
from rerail_trainer.parallel.shards import local_shard

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Group:
    """Parameters with the same decay, and their moments, as they lie on this rank."""

    decay: float
    owners: list[nn.Parameter]
    values: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 2019) by the fused kernel that torch.optim.AdamW uses.

    Not that class itself: its first use imports the compiler, seconds of every start. The bias correction
    counts training steps, which never skip one, so the moments are all the state there is; they exist from
    the start. Matrices decay, vectors (norms) do not.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self._config = config
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            self.state[parameter] = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
        self._groups = [
            self._group(config.weight_decay, [p for p in parameters if p.dim() >= 2]),
            self._group(0.0, [p for p in parameters if p.dim() < 2]),
        ]

    def reset(self) -> None:
        """Forgets everything, as at step 0."""
        for moments in self.state.values():
            for moment in moments.values():
                local_shard(moment).tensor.zero_()

    @torch.no_grad()
    def step(self, count: int, rate: float, unless: Tensor) -> None:
        """The update number `count` (from 1) with learning rate `rate`;
        none if the scalar `unless` is not 0.
        """
        config = self._config
        for group in self._groups:
            if not group.owners:
                continue
            taken = torch.full((), float(count), dtype=torch.float32, device=group.values[0].device)
            torch._fused_adamw_(
                group.values,
                [_gradient(parameter) for parameter in group.owners],
                group.first,
                group.second,
                [],
                [taken] * len(group.owners),
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

    def _group(self, decay: float, owners: Sequence[nn.Parameter]) -> _Group:
        values = [local_shard(parameter).tensor for parameter in owners]
        first, second = ([local_shard(self.state[p][key]).tensor for p in owners] for key in MOMENTS)
        return _Group(decay, list(owners), values, first, second)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter got no gradient in this step")
    return local_shard(parameter.grad).tensor


def learning_rate(step: int, config: OptimConfig, horizon: int) -> float:
    """Rate of step index `step` (from 0): linear warm-up,
    then the schedule down to min_lr_frac at `horizon`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(horizon - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / span, 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return config.lr * (config.min_lr_frac + (1.0 - config.min_lr_frac) * left)
