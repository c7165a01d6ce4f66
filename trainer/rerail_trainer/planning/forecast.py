"""Tokens per second and days, by an MFU that somebody measured. Torch-free."""

from dataclasses import dataclass

from rerail_trainer.config import Config

from .parts import flops_per_token
from .traffic import Machine

SECONDS_PER_DAY = 86_400.0

_MEASURED = {
    ("dense", "one node"): (0.50, "nanochat d24 on 8 H100"),
    ("dense", "more"): (0.39, "NeMo AutoModel, Llama 70B on 64 H100"),
    ("moe", "one node"): (0.28, "NeMo AutoModel, Qwen3-30B-A3B on 8 H100"),
    ("moe", "more"): (0.22, "NeMo AutoModel, DeepSeek-V3 on 1,024 H100"),
}
"""Published by others, recomputed by this project's convention (FLOP per token as in `parts`)."""


@dataclass(frozen=True)
class Forecast:
    """mfu and where it comes from; tokens per second of all GPUs; days without interruptions."""

    mfu: float
    mfu_source: str
    tokens_per_second: float
    step_seconds: float
    tokens: int
    days: float
    gpu_hours: float


def expected_mfu(config: Config, machine: Machine, step_seconds: float) -> tuple[float, str]:
    """A published one of the same class, and of whom; no more than a step of `step_seconds` allows."""
    kind = "moe" if config.model.experts else "dense"
    published = _MEASURED[kind, "one node" if machine.nodes == 1 else "more"]
    flops = flops_per_token(config.model) * config.batch.tokens_per_step
    allowed = flops / (step_seconds * machine.gpus * machine.gpu.peak_flops)
    return min(published, (allowed, "what the traffic of this layout allows, by arithmetic"))


def forecast(config: Config, machine: Machine, mfu: tuple[float, str], tokens: int) -> Forecast:
    """For `tokens` tokens in all."""
    per_gpu = mfu[0] * machine.gpu.peak_flops / flops_per_token(config.model)
    rate = per_gpu * machine.gpus
    seconds = tokens / rate
    return Forecast(
        *mfu,
        tokens_per_second=rate,
        step_seconds=config.batch.tokens_per_step / rate,
        tokens=tokens,
        days=seconds / SECONDS_PER_DAY,
        gpu_hours=seconds / 3600 * machine.gpus,
    )
