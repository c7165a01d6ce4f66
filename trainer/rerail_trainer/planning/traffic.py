"""How long a step takes by layout: products, what ranks send each other, what hides it. Torch-free.

A model to rank layouts by, not a forecast: the forecast of a plan goes by a measured MFU.
"""

from dataclasses import dataclass

from rerail_trainer.config import Config, ModelConfig
from rerail_trainer.parallel.mesh import WHOLE_GRADIENT_BYTES, Mesh

from .gpus import Gpu
from .memory import Setup
from .parts import flops_per_token, parts_of

PRODUCT_EFFICIENCY = 0.65
"""Share of the peak that a step's products reach when nothing has to be sent; about 50 % MFU of dense models
on one GPU is 63 % of the matmul peak that is measured there."""
HOP_SECONDS = 5e-6
"""Latency of one hop of a ring."""
LAUNCH_SECONDS = 0.6e-3
"""Host time for one block's forward and backward pass: a micro-batch cannot be faster."""
SELECTIVE_SHARE = 0.05
"""What selective recomputation adds to the products: norms, rotations and activations read memory again."""


INTERFERENCE = 0.1
"""What a hidden second of traffic costs all the same: its kernels take memory bandwidth and cores."""


@dataclass(frozen=True)
class Machine:
    """`gpus` of one kind, so many to a node."""

    gpu: Gpu
    gpus: int
    gpus_per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    products: with what is computed again; hidden: parameter traffic, which overlaps with products;
    exposed: exchanges between products, which nothing hides.
    """

    products: float
    hidden: float
    exposed: float

    @property
    def total(self) -> float:
        return max(self.products, self.hidden) + self.exposed + INTERFERENCE * self.hidden


@dataclass(frozen=True)
class _Group:
    """Ranks that talk: how many, and how far apart neighbours are."""

    size: int
    stride: int

    def ring_seconds(self, received: float, machine: Machine) -> float:
        """A collective in which every rank receives so many bytes. All cards of a node carry its rings."""
        if self.size == 1:
            return 0.0
        here = max(min(machine.gpus_per_node // self.stride, self.size), 1)
        rate = machine.gpu.local_bytes_per_second
        if here < self.size:
            rate = min(rate, here * machine.gpu.remote_bytes_per_second)
        return received / rate + (self.size - 1) * HOP_SECONDS

    def exchange_seconds(self, sent: float, machine: Machine) -> float:
        """All to all: what goes to other nodes goes through the rank's own card."""
        if self.size == 1:
            return 0.0
        here = max(min(machine.gpus_per_node // self.stride, self.size), 1)
        away = sent * (1 - here / self.size) / machine.gpu.remote_bytes_per_second
        return away + sent * (here - 1) / self.size / machine.gpu.local_bytes_per_second + HOP_SECONDS * here


def step_time(config: Config, setup: Setup, machine: Machine) -> StepTime:
    """By the arithmetic of ring collectives: a gather or scatter moves all but one rank's part."""
    model, mesh = config.model, setup.mesh
    compute = 2 if config.parallel.compute_dtype == "bfloat16" else 4
    tokens = setup.micro_batch * model.seq_len
    flops = flops_per_token(model) * tokens / mesh.tensor
    again = {"none": 0.0, "selective": SELECTIVE_SHARE, "block": 1 / 3}[setup.recompute]
    products = flops * (1 + again) / (machine.gpu.peak_flops * PRODUCT_EFFICIENCY)
    products = max(products, model.layers * LAUNCH_SECONDS)
    # Collectives inside a block are repeated with it.
    passes = 2 if setup.recompute == "none" else 3
    exposed = passes * (
        _tensor_seconds(model, mesh, tokens * compute, machine)
        + _expert_seconds(model, mesh, tokens * compute, machine)
    )
    return StepTime(
        setup.micro_batches * products,
        _parameter_seconds(model, setup, compute, machine),
        setup.micro_batches * exposed,
    )


def _parameter_seconds(model: ModelConfig, setup: Setup, compute: int, machine: Machine) -> float:
    """Weights gathered for both passes of every micro-batch, gradients reduced in float32."""
    mesh = setup.mesh
    whole = 4 * sum(part.on_rank(mesh) for part in parts_of(model))
    reductions = 1 if whole <= WHOLE_GRADIENT_BYTES else setup.micro_batches
    seconds = 0.0
    for part in parts_of(model):
        own = part.on_rank(mesh)
        shards, replicas = _groups(part.where, mesh)
        units = max(model.layers, 1) if part.name in ("attention", "experts") else 1
        if shards.size > 1:
            share = own * (1 - 1 / shards.size)
            gathers = 2 * setup.micro_batches
            seconds += gathers * _several(shards, compute * share, units, machine)
            seconds += reductions * _several(shards, 4 * share, units, machine)
        if replicas.size > 1:
            share = 2 * 4 * own / shards.size * (1 - 1 / replicas.size)
            seconds += _several(replicas, share, units, machine)
    return seconds


def _several(group: _Group, received: float, units: int, machine: Machine) -> float:
    """`received` bytes in `units` equal collectives."""
    return units * group.ring_seconds(received / units, machine)


def _groups(where: str, mesh: Mesh) -> tuple[_Group, _Group]:
    """Over which ranks a part is cut, and over which it is alike."""
    if where == "experts":
        shards = mesh.expert_shard if mesh.shard > 1 else 1
        return (
            _Group(shards, mesh.tensor * mesh.expert),
            _Group(mesh.data_size // (mesh.expert * shards), mesh.tensor * mesh.expert * shards),
        )
    if where == "outside" and mesh.shard > 1:
        size = mesh.shard * mesh.tensor
        return _Group(size, 1), _Group(mesh.replicas, size)
    return _Group(mesh.shard, mesh.tensor), _Group(mesh.replicas, mesh.tensor * mesh.shard)


def _tensor_seconds(model: ModelConfig, mesh: Mesh, stream: float, machine: Machine) -> float:
    """One pass: the sequence gathered before, and cut again after, both halves of every block."""
    received = stream * model.dim * (1 - 1 / mesh.tensor)
    return 4 * model.layers * _Group(mesh.tensor, 1).ring_seconds(received, machine)


def _expert_seconds(model: ModelConfig, mesh: Mesh, stream: float, machine: Machine) -> float:
    """One pass: every token's copies to their experts and back, in every mixture."""
    if mesh.expert == 1:
        return 0.0
    mixtures = model.layers - model.dense_layers
    sent = stream * model.dim * model.experts_per_token
    return 2 * mixtures * _Group(mesh.expert, mesh.tensor).exchange_seconds(sent, machine)
