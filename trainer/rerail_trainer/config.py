"""Every setting of the trainer: frozen dataclasses, their bounds, their canonical form and its hash.

Torch-free.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from .failures import BadConfig

ORDER_VERSION = 1
"""Rises when the same seed gives another order of windows: then an older run cannot be continued exactly."""


@dataclass(frozen=True)
class RunConfig:
    seed: int = 1
    """Decides initial weights and data order."""


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    layers: int = 12
    dim: int = 768
    heads: int = 12
    kv_heads: int = 12
    head_dim: int = 64
    ffn: int = 2048
    vocab: int = 264
    """At least the tokenizer's vocabulary; rounded up by hand where the hardware likes it."""
    seq_len: int = 1024
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tie: bool = False
    """Shares the embedding with the output head."""
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class DataConfig:
    source: Literal["pydoc", "text", "shards"] = "pydoc"
    """pydoc: the language reference that Python holds; text: UTF-8 files; shards: token files."""
    path: str = ""
    """A file, a folder or a glob pattern, for text and shards."""
    shuffle: bool = True


@dataclass(frozen=True)
class BatchConfig:
    tokens_per_step: int = 524_288
    """Over all ranks: fixed, so that neither schedule nor data order depends on the number of ranks."""
    micro_batch: int = 16
    """At most so many sequences per rank go through the model at once."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 6e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    """Largest global gradient norm; 0 leaves gradients alone."""
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    horizon_steps: int = 0
    """Step at which the schedule ends; 0 means train.steps."""
    min_lr_frac: float = 0.1


@dataclass(frozen=True)
class ParallelConfig:
    mode: Literal["ddp", "fsdp"] = "ddp"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    init_seconds: int = 300
    """How long ranks wait for each other at the start."""
    step_seconds: int = 600
    """How long one collective may take."""


@dataclass(frozen=True)
class CheckpointConfig:
    dir: str = ""
    """Folder shared by all ranks; empty means RERAIL_CHECKPOINT_DIR, and without that nothing is saved."""
    every_steps: int = 1000
    every_seconds: int = 0
    """Also save when so many seconds have passed by rank 0's clock; 0 is never."""
    keep: int = 2
    keep_every: int = 0
    """Besides, keep every step that this divides; 0 keeps none."""
    resume: Literal["auto", "never"] = "auto"
    take_over: str = ""
    """Name (namespace/name) of a job whose folder this one may continue, although it did not finish."""
    owner_lease_seconds: int = 20
    """Another job's folder counts as abandoned when its owner gave no sign for so long."""
    grace_seconds: int = 0
    """After SIGTERM give up on saving shortly before so many seconds;
    0 means RERAIL_GRACE_SECONDS or never.
    """


@dataclass(frozen=True)
class MetricsConfig:
    every: int = 10
    """One line for people per so many steps."""
    port: int = 0
    """Port of /metrics on rank 0; 0 is off."""
    jsonl: str = ""
    """File of rank 0 to which one JSON object per step is appended."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def sequences_per_step(self) -> int:
        return self.batch.tokens_per_step // self.model.seq_len

    @property
    def horizon_steps(self) -> int:
        return self.optim.horizon_steps or self.train.steps


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


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces, so that its hash is the hash of the meaning."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def identity_of(config: Config) -> dict[str, Any]:
    """What must stay equal for two runs to be one training: a flat table of setting -> value.

    World size, micro-batch, checkpoint and metric settings are free; the schedule's horizon is not, because
    the learning rate of every later step hangs on it.
    """
    tree = asdict(replace(config, optim=replace(config.optim, horizon_steps=config.horizon_steps)))
    flat = {
        f"{section}.{name}": tree[section][name]
        for section in ("run", "model", "optim")
        for name in tree[section]
    }
    flat["batch.tokens_per_step"] = config.batch.tokens_per_step
    flat["data.shuffle"] = config.data.shuffle
    flat["data.order"] = ORDER_VERSION
    return flat


def config_hash(config: Config) -> str:
    """SHA-256 (hex) of the canonical JSON of `identity_of`."""
    return hashlib.sha256(canonical_json(identity_of(config)).encode()).hexdigest()


def check(config: Config) -> None:
    """Raises BadConfig with what to write instead; needs no torch and no data."""
    for name, value in _counts(config).items():
        if value < 1:
            raise BadConfig(f"{name}={value} must be at least 1")
    model, batch, checkpoint = config.model, config.batch, config.checkpoint
    rules = [
        (
            model.heads % model.kv_heads == 0,
            f"model.kv_heads={model.kv_heads} must divide model.heads={model.heads}",
        ),
        (model.head_dim % 2 == 0, f"model.head_dim={model.head_dim} must be even: RoPE turns pairs"),
        (
            batch.tokens_per_step % model.seq_len == 0,
            f"batch.tokens_per_step={batch.tokens_per_step} must be a multiple of "
            f"model.seq_len={model.seq_len}",
        ),
        (
            checkpoint.keep >= 2,
            f"checkpoint.keep={checkpoint.keep} must be at least 2: one may turn out damaged",
        ),
        (
            config.data.source == "pydoc" or bool(config.data.path),
            f"data.source={config.data.source} needs data.path",
        ),
        (config.optim.warmup_steps >= 0, "optim.warmup_steps must not be negative"),
    ]
    for holds, message in rules:
        if not holds:
            raise BadConfig(message)


def _counts(config: Config) -> dict[str, int]:
    """Settings that must be positive."""
    model = asdict(config.model)
    names = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn", "seq_len")
    return {
        **{f"model.{name}": model[name] for name in names},
        "batch.tokens_per_step": config.batch.tokens_per_step,
        "batch.micro_batch": config.batch.micro_batch,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "metrics.every": config.metrics.every,
        "train.steps": config.train.steps,
    }
