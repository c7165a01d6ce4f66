"""Configurations by name, and the machine that each is meant for. Torch-free.

Batches, layouts and intervals of checkpoints are what `plan` gives for that machine, or close to it.
"""

from dataclasses import dataclass

from .config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Target:
    """The machine that a preset's batch and layout are chosen for; `gpu` is a name of planning.gpus."""

    gpus: int
    gpu: str = "h100"


# Rows of the speed table that name no tokenizer use GPT-2's 50,257 tokens, rounded up to a multiple of 128.
GPT2_VOCAB = 50_304
LLAMA3_VOCAB = 128_256

_FAST = ParallelConfig(compute_dtype="bfloat16", compile=True)

PRESETS: dict[str, Config] = {
    "default": Config(),
    # 2 x 2 ranks on two cores must do several steps a second: small tensors, few layers, short windows.
    "tiny": Config(
        model=ModelConfig(layers=2, dim=64, heads=4, kv_heads=2, head_dim=16, ffn=192, seq_len=64),
        batch=BatchConfig(tokens_per_step=4096, micro_batch=16),
        optim=OptimConfig(lr=1e-2, warmup_steps=10),
        checkpoint=CheckpointConfig(every_steps=10, keep=3),
        metrics=MetricsConfig(every=10),
        train=TrainConfig(steps=120),
    ),
    # The same with its feed-forwards cut into experts: as much per token, three times as much in all.
    "tiny-moe": Config(
        model=ModelConfig(
            layers=2,
            dim=64,
            heads=4,
            kv_heads=2,
            head_dim=16,
            ffn=192,
            seq_len=64,
            experts=8,
            experts_per_token=2,
            expert_ffn=64,
            shared_ffn=64,
            router_score="sigmoid",
            balance_bias=1e-3,
            balance_loss=1e-4,
        ),
        batch=BatchConfig(tokens_per_step=4096, micro_batch=16),
        optim=OptimConfig(lr=1e-2, warmup_steps=10),
        checkpoint=CheckpointConfig(every_steps=10, keep=3),
        metrics=MetricsConfig(every=10),
        train=TrainConfig(steps=120),
    ),
    # GPT-2's smallest shape on 10 billion tokens, the run that llm.c and its followers time.
    "gpt2-124m": Config(
        model=ModelConfig(
            layers=12,
            dim=768,
            heads=12,
            kv_heads=12,
            head_dim=64,
            ffn=3072,
            vocab=GPT2_VOCAB,
            seq_len=1024,
            mlp="gelu",
            tie=True,
        ),
        batch=BatchConfig(tokens_per_step=524_288, micro_batch=64),
        optim=OptimConfig(lr=6e-4, warmup_steps=700),
        parallel=_FAST,
        train=TrainConfig(steps=19_560),
    ),
    # 20 tokens per parameter (Hoffmann et al., 2022), as in the next two.
    "dense-1b": Config(
        model=ModelConfig(
            layers=16,
            dim=2048,
            heads=32,
            kv_heads=8,
            head_dim=64,
            ffn=8192,
            vocab=GPT2_VOCAB,
            seq_len=2048,
        ),
        batch=BatchConfig(tokens_per_step=1_048_576, micro_batch=8),
        optim=OptimConfig(lr=4e-4, warmup_steps=1000),
        parallel=_FAST,
        train=TrainConfig(steps=21_000),
    ),
    # The shape of Llama 3 8B; --model.seq_len=8192 for its second stage.
    "dense-8b": Config(
        model=ModelConfig(
            layers=32,
            dim=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            ffn=14_336,
            vocab=LLAMA3_VOCAB,
            seq_len=4096,
            rope_theta=500_000.0,
        ),
        batch=BatchConfig(tokens_per_step=4_194_304, micro_batch=2),
        optim=OptimConfig(lr=3e-4, warmup_steps=2000),
        parallel=ParallelConfig(compute_dtype="bfloat16", compile=True, shard=0),
        checkpoint=CheckpointConfig(every_seconds=450),
        train=TrainConfig(steps=40_000),
    ),
    # The shape of Llama 3 70B.
    "dense-70b": Config(
        model=ModelConfig(
            layers=80,
            dim=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            ffn=28_672,
            vocab=LLAMA3_VOCAB,
            seq_len=8192,
            rope_theta=500_000.0,
        ),
        batch=BatchConfig(tokens_per_step=8_388_608, micro_batch=2),
        optim=OptimConfig(lr=1.5e-4, warmup_steps=2000),
        parallel=ParallelConfig(compute_dtype="bfloat16", compile=True, shard=64, recompute="block"),
        checkpoint=CheckpointConfig(every_seconds=450),
        train=TrainConfig(steps=170_000),
    ),
    # One expert in eight works for a token; as much per token as a dense model of a quarter of the size.
    "moe-1b-a270m": Config(
        model=ModelConfig(
            layers=16,
            dim=1024,
            heads=8,
            kv_heads=8,
            head_dim=128,
            ffn=1024,
            vocab=GPT2_VOCAB,
            seq_len=2048,
            experts=16,
            experts_per_token=2,
            expert_ffn=1024,
            shared_ffn=1024,
            router_score="sigmoid",
            balance_bias=1e-3,
            balance_loss=1e-4,
        ),
        batch=BatchConfig(tokens_per_step=1_048_576, micro_batch=8),
        optim=OptimConfig(lr=6e-4, warmup_steps=1000),
        parallel=_FAST,
        train=TrainConfig(steps=20_000),
    ),
    # The shape of Qwen3-30B-A3B, whose router has a loss and no bias.
    "moe-30b-a3b": Config(
        model=ModelConfig(
            layers=48,
            dim=2048,
            heads=32,
            kv_heads=4,
            head_dim=128,
            ffn=6144,
            vocab=151_936,
            seq_len=4096,
            rope_theta=1_000_000.0,
            qk_norm="head",
            norm_eps=1e-6,
            experts=128,
            experts_per_token=8,
            expert_ffn=768,
            balance_loss=1e-3,
        ),
        batch=BatchConfig(tokens_per_step=4_194_304, micro_batch=8),
        optim=OptimConfig(lr=3e-4, warmup_steps=2000),
        parallel=ParallelConfig(compute_dtype="bfloat16", compile=True, shard=0, recompute="block"),
        checkpoint=CheckpointConfig(every_seconds=900),
        train=TrainConfig(steps=150_000),
    ),
    # For the 15,000 H100 that MAI-1-preview was trained on. Its size was never published: this is our own.
    # About 37 billion parameters per token, as in DeepSeek-V3, whose 15 trillion tokens then take two weeks;
    # 160 experts, because they can be spread over 8 ranks (a node) or 40 of 15,000, 256 over no more than 8;
    # one sequence per rank and step, which is DeepSeek-V3's batch of 63 million tokens to within 3 %.
    "mai-1-class": Config(
        model=ModelConfig(
            layers=60,
            dim=7168,
            heads=56,
            kv_heads=8,
            head_dim=128,
            ffn=18_432,
            vocab=LLAMA3_VOCAB,
            seq_len=4096,
            rope_theta=500_000.0,
            qk_norm="head",
            experts=160,
            experts_per_token=8,
            expert_ffn=2560,
            shared_ffn=2560,
            dense_layers=2,
            router_score="sigmoid",
            router_scale=2.5,
            balance_bias=1e-3,
            balance_loss=1e-4,
        ),
        batch=BatchConfig(tokens_per_step=61_440_000, micro_batch=1),
        optim=OptimConfig(lr=2.2e-4, warmup_steps=2000),
        parallel=ParallelConfig(
            compute_dtype="bfloat16", compile=True, shard=200, expert=40, recompute="block"
        ),
        checkpoint=CheckpointConfig(every_seconds=130),
        train=TrainConfig(steps=244_000),
    ),
}

TARGETS: dict[str, Target] = {
    "gpt2-124m": Target(8),
    "dense-1b": Target(8),
    "dense-8b": Target(64),
    "dense-70b": Target(512),
    "moe-1b-a270m": Target(8),
    "moe-30b-a3b": Target(64),
    "mai-1-class": Target(15_000),
}
