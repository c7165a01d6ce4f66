"""The layouts that a machine allows, which of them fit, and the fastest. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig
from rerail_trainer.parallel.mesh import Mesh, mesh_of

from .memory import Memory, Recompute, Setup, memory_of
from .traffic import Machine, StepTime, step_time

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "block")
RESERVE_BYTES = 2 << 30
"""What CUDA, NCCL and cuBLAS take on every GPU."""
RESERVE_SHARE = 0.05
"""Of the memory of a GPU, left to the gaps between blocks of the allocator."""


@dataclass(frozen=True)
class Candidate:
    """One way to train, with what it needs."""

    setup: Setup
    memory: Memory
    time: StepTime


def usable_bytes(machine: Machine) -> int:
    """What a plan may fill of one GPU."""
    return round(machine.gpu.memory_bytes * (1 - RESERVE_SHARE)) - RESERVE_BYTES


def candidates(config: Config, machine: Machine) -> Iterator[Candidate]:
    """Every layout that divides, with every recomputation and micro-batch; tensor ranks stay in a node."""
    for mesh in _meshes(config, machine):
        own = config.sequences_per_step // mesh.data_size
        for micro_batch in _divisors(own):
            for recompute in RECOMPUTE:
                setup = Setup(mesh, recompute, micro_batch, own // micro_batch)
                yield Candidate(setup, memory_of(config, setup), step_time(config, setup, machine))


def configured(config: Config, machine: Machine) -> Candidate:
    """The configuration's own layout. Raises BadConfig where it does not divide."""
    mesh = mesh_of(config, machine.gpus)
    sequences = config.sequences_per_step
    if sequences % mesh.data_size:
        raise BadConfig(uneven(config, mesh.data_size))
    own = sequences // mesh.data_size
    micro_batch = min(config.batch.micro_batch, own)
    if own % micro_batch:
        raise BadConfig(f"batch.micro_batch={micro_batch} must divide the {own} sequences of a rank")
    setup = Setup(mesh, config.parallel.recompute, micro_batch, own // micro_batch)
    return Candidate(setup, memory_of(config, setup), step_time(config, setup, machine))


def best(found: list[Candidate], usable: int) -> Candidate | None:
    """The fastest that fits; of equals the one that leaves most memory free."""
    fitting = [one for one in found if one.memory.total <= usable]
    return min(fitting, key=lambda one: (round(one.time.total, 4), one.memory.total), default=None)


def uneven(config: Config, data_size: int) -> str:
    """What to say of a batch that so many ranks cannot share."""
    sequences, length = config.sequences_per_step, config.model.seq_len
    below, above = sequences // data_size * data_size, -(-sequences // data_size) * data_size
    fitting = " or ".join(f"{count * length}" for count in (below, above) if count)
    return (
        f"batch.tokens_per_step={config.batch.tokens_per_step} is {sequences} sequences, which {data_size} "
        f"ranks cannot share evenly; use {fitting}"
    )


def _meshes(config: Config, machine: Machine) -> Iterator[Mesh]:
    model, world = config.model, machine.gpus
    for tensor in _divisors(min(machine.gpus_per_node, world)):
        if world % tensor or machine.gpus_per_node % tensor or config.sequences_per_step % (world // tensor):
            continue
        data = world // tensor
        for expert in _divisors(model.experts) if model.experts else [1]:
            for shard in _divisors(data):
                asked = replace(config.parallel, tensor=tensor, expert=expert, shard=shard)
                try:
                    yield mesh_of(replace(config, parallel=asked), world)
                except BadConfig:
                    continue


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
