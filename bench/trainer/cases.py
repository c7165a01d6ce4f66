"""What is measured: presets as one device runs them, their goals, and tiny stand-ins."""

from dataclasses import dataclass, replace

from rerail_trainer.config import Config, MetricsConfig, ModelConfig
from rerail_trainer.presets import PRESETS


@dataclass(frozen=True)
class Case:
    """One model on one device. goal: tokens per second and MFU of one H200, 0 where there is none.

    micro_batch and accumulate are chosen for the memory of one H200; moments and recompute likewise.
    """

    name: str
    preset: str
    micro_batch: int
    accumulate: int
    goal_tokens: float = 0.0
    goal_mfu: float = 0.0
    moments: str = "float32"
    recompute: str = "none"
    twin_of: str = ""


CASES = (
    Case("gpt2-124m", "gpt2-124m", 64, 8, 500e3, 0.43),
    Case("dense-1b", "dense-1b", 8, 8, 68e3, 0.50),
    Case("dense-8b", "dense-8b", 2, 8, 10e3, 0.52, moments="bfloat16", recompute="block"),
    Case("moe-1b-a270m", "moe-1b-a270m", 8, 8, 186e3, 0.38),
    # As much computed per token as in the experts that a token passes; nothing to route.
    Case("moe-1b-a270m dense twin", "moe-1b-a270m", 8, 8, twin_of="moe-1b-a270m"),
)
GOAL_MOE_TO_TWIN = 0.80


def dense_twin(model: ModelConfig) -> ModelConfig:
    """The dense model with the same products per token."""
    width = model.experts_per_token * (model.expert_ffn or model.ffn) + model.shared_ffn
    return replace(
        model, experts=0, ffn=width, shared_ffn=0, expert_ffn=0, balance_bias=0.0, balance_loss=0.0
    )


def tiny(model: ModelConfig) -> ModelConfig:
    """The same kind of model, small enough for two cores: to see the bench work, not for figures."""
    return replace(
        model,
        layers=2,
        dim=64,
        heads=4,
        kv_heads=2 if model.kv_heads < model.heads else 4,
        head_dim=16,
        ffn=128,
        expert_ffn=32 if model.experts else 0,
        shared_ffn=32 if model.shared_ffn else 0,
        experts=min(model.experts, 8),
        vocab=512,
        seq_len=64,
    )


def config_of(case: Case, device: str, small: bool) -> Config:
    """The preset on one device: nothing is sharded, saved or evaluated."""
    base = PRESETS[case.preset]
    model = tiny(base.model) if small else base.model
    model = dense_twin(model) if case.twin_of else model
    micro_batch, accumulate = (4, 2) if small else (case.micro_batch, case.accumulate)
    parallel = replace(
        base.parallel,
        shard=1,
        tensor=1,
        expert=1,
        device=device,
        recompute=case.recompute,  # type: ignore[arg-type]
    )
    if device == "cpu":
        parallel = replace(parallel, compute_dtype="float32", compile=False)
    return replace(
        base,
        model=model,
        batch=replace(
            base.batch, micro_batch=micro_batch, tokens_per_step=micro_batch * accumulate * model.seq_len
        ),
        optim=replace(base.optim, moment_dtype=case.moments),  # type: ignore[arg-type]
        parallel=parallel,
        metrics=MetricsConfig(every=1_000_000_000),
    )
