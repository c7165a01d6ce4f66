"""Every setting of the trainer: frozen dataclasses, their bounds, their canonical form and its hash.

Torch-free.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from .architecture import check_model
from .failures import BadConfig

ORDER_VERSION = 1
"""Rises when the same seed gives another order of windows: then an older run cannot be continued exactly."""


@dataclass(frozen=True)
class RunConfig:
    seed: int = 1
    """Decides initial weights and data order."""
    init_from: str = ""
    """Folder of open weights (Hugging Face layout) or a checkpoint folder that gives the first weights;
    looked at only where there is no step to resume from.
    """
    cache_dir: str = ""
    """Where compiled kernels are kept between starts; empty: inside checkpoint.dir."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RMSNorm, RoPE, grouped-query attention; dense, or a mixture of experts where experts > 0."""

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
    rope_scaling: str = ""
    """Empty, or llama3:FACTOR:LOW:HIGH:ORIGINAL (Llama 3.1's stretch of long wavelengths)."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["pre", "post"] = "pre"
    """post: each sub-layer's output is normalised before it is added (OLMo 2)."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """head: each head's query and key (Qwen 3); full: the whole projection (OLMo 2)."""
    dropout: float = 0.0
    tie: bool = False
    """Shares the embedding with the output head."""
    norm_eps: float = 1e-5
    experts: int = 0
    """Feed-forward experts per block; 0 is a dense model."""
    experts_per_token: int = 2
    expert_ffn: int = 0
    """Width of one expert; 0 means ffn."""
    shared_ffn: int = 0
    """Width of a feed-forward that every token passes besides its experts; 0 is none."""
    dense_layers: int = 0
    """So many first blocks have an ordinary feed-forward of width ffn."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    router_norm: bool = True
    """Makes the weights of a token's chosen experts sum to one."""
    router_scale: float = 1.0
    """Factor on those weights."""
    balance_loss: float = 0.0
    """Coefficient of the load-balancing loss, taken per sequence so that it is the same in every layout."""
    balance_bias: float = 0.0
    """Step of the bias that evens out the experts' load without a loss; 0 is off."""
    z_loss: float = 0.0
    """Coefficient of the squared log-sum-exp of the router's logits."""


@dataclass(frozen=True)
class DataConfig:
    source: Literal["pydoc", "text", "shards", "chat"] = "pydoc"
    """pydoc: the language reference that Python holds; text: UTF-8 files; shards: a folder that `prepare`
    made, or token files; chat: conversations, prepared with --chat or as JSON lines, for train.stage=sft.
    """
    path: str = ""
    """A file, a folder or a glob pattern; several with weights as PATH=WEIGHT,PATH=WEIGHT."""
    held_out: str = ""
    """A prepared folder to evaluate on; empty: the held-out part of data.path."""
    tokenizer: str = ""
    """bytes, or a tokenizer.json or its folder, for text and chat; empty: that of run.init_from for chat,
    else bytes. A prepared folder brings its own.
    """
    verify: Literal["sizes", "digests"] = "sizes"
    """digests: reads every prepared shard through at the start, against corpus.json."""
    shuffle: bool = True
    document_mask: bool = False
    """Keeps attention inside documents."""


@dataclass(frozen=True)
class BatchConfig:
    tokens_per_step: int = 524_288
    """Over all ranks: fixed, so that neither schedule nor data order depends on the number of ranks."""
    micro_batch: int = 16
    """At most so many sequences per rank go through the model at once."""


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for all else."""
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """How AdamW's moments are kept."""
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
    shard: int = 1
    """Ranks over which parameters, gradients and optimizer state are cut; 0 means all that are left.

    world size = replicas x shard x tensor; the number of replicas follows.
    """
    tensor: int = 1
    """Ranks that share every matrix product, with the sequence cut between products."""
    expert: int = 1
    """Data ranks over which the experts of a block are spread; divides replicas x shard."""
    recompute: Literal["none", "selective", "block"] = "none"
    """What the backward pass computes again to save memory."""
    compile: bool = False
    """Compiles each block."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    init_seconds: int = 300
    """How long ranks wait for each other at the start."""
    step_seconds: int = 0
    """How long one collective may take; 0: longer than the watchdog allows, so that it speaks first."""


@dataclass(frozen=True)
class CheckpointConfig:
    dir: str = ""
    """Folder shared by all ranks; empty means RERAIL_CHECKPOINT_DIR, and without that nothing is saved."""
    every_steps: int = 1000
    every_seconds: int = 0
    """Also save when so many seconds have passed by rank 0's clock; 0 is never."""
    mode: Literal["process", "sync"] = "process"
    """process: a process beside each rank writes while training goes on; sync: training waits."""
    verify: Literal["touched", "all", "size"] = "touched"
    """Whose digests a load checks: of the bytes it reads, of all files, or only sizes."""
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
    tensorboard: str = ""
    """Folder for TensorBoard event files."""
    wandb: str = ""
    """Project of Weights & Biases."""
    peak_tflops: float = 0.0
    """Dense bf16 peak of one device, for MFU; 0 means by the device's name."""


@dataclass(frozen=True)
class WatchdogConfig:
    """When a rank counts as hung: it then writes all stacks and ends with exit code 84. 0 turns one off."""

    init_seconds: int = 1800
    """From the process start to the first step."""
    step_seconds: int = 600
    """Between two finished steps."""
    save_seconds: int = 1800
    eval_seconds: int = 1800


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    stage: Literal["pretrain", "sft"] = "pretrain"
    """sft: supervised fine-tuning on conversations; the loss counts answers only."""
    eval_every: int = 0
    """Held-out loss after every so many steps; 0 is never."""
    eval_sequences: int = 64
    """Held-out sequences per evaluation."""


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
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def sequences_per_step(self) -> int:
        return self.batch.tokens_per_step // self.model.seq_len

    @property
    def collective_seconds(self) -> int:
        """How long one collective may take."""
        limits = asdict(self.watchdog).values()
        return self.parallel.step_seconds or (max(limits) + 60 if all(limits) else 24 * 3600)

    @property
    def horizon_steps(self) -> int:
        return self.optim.horizon_steps or self.train.steps


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
    for free in ("run.init_from", "run.cache_dir", "optim.moment_dtype"):
        del flat[free]
    flat["train.stage"] = config.train.stage
    flat["data.document_mask"] = config.data.document_mask
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
    check_model(config.model)
    model, batch, checkpoint = config.model, config.batch, config.checkpoint
    rules = [
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
        (
            (config.data.source == "chat") == (config.train.stage == "sft"),
            "train.stage=sft and data.source=chat belong together: set both or neither",
        ),
        (config.optim.warmup_steps >= 0, "optim.warmup_steps must not be negative"),
        (config.train.eval_every >= 0, "train.eval_every must not be negative; 0 is never"),
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
        "train.eval_sequences": config.train.eval_sequences,
    }
