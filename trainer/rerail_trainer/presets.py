"""Configurations by name. Torch-free."""

from .config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

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
}
