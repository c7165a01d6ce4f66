"""Where each rank stands: replicas x shard x tensor, and experts spread over the data ranks. Torch-free, so
that a plan and a check of the configuration need no start.

Ranks are counted with `tensor` innermost, because tensor ranks talk most and neighbours share a machine:
rank = (replica x shard size + shard) x tensor size + tensor. Ranks of one tensor group read the same data;
all others read their own. Experts are dealt round over the data ranks: a rank's expert coordinate is its data
rank modulo the expert degree.
"""

from dataclasses import dataclass

from rerail_trainer.config import Config, ModelConfig, ParallelConfig
from rerail_trainer.failures import BadConfig

Ranks = tuple[int, ...]

WHOLE_GRADIENT_BYTES = 8 << 30
"""FSDP sums up the gradients of a step's micro-batches whole, and sends them once, where they take no more
than this on a rank (float32, before it cuts them). Above, every micro-batch's are cut at once.
"""


@dataclass(frozen=True)
class Mesh:
    """Sizes of the axes; world size = replicas x shard x tensor."""

    replicas: int = 1
    shard: int = 1
    tensor: int = 1
    expert: int = 1

    def __str__(self) -> str:
        if self.world_size == 1:
            return "1 rank"
        words = [f"{self.replicas}x{self.shard} shard" if self.shard > 1 else f"{self.replicas} replicas"]
        words += [
            f"{name} {size}" for name, size in (("tensor", self.tensor), ("expert", self.expert)) if size > 1
        ]
        return ", ".join(words)

    @property
    def world_size(self) -> int:
        return self.data_size * self.tensor

    @property
    def data_size(self) -> int:
        """Ranks that read data of their own."""
        return self.replicas * self.shard

    @property
    def whole(self) -> bool:
        """Whether every rank holds the whole model."""
        return self.shard == self.tensor == self.expert == 1

    @property
    def expert_shard(self) -> int:
        """Ranks over which the parameters of one rank's experts are cut further."""
        return max(self.shard // self.expert, 1)

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same part of the same experts."""
        return self.data_size // (self.expert * self.expert_shard)

    def at(self, rank: int) -> "Place":
        """The coordinates of `rank`."""
        data, tensor = divmod(rank, self.tensor)
        replica, shard = divmod(data, self.shard)
        return Place(self, rank, data, replica, shard, tensor)


@dataclass(frozen=True)
class Place:
    """One rank's coordinates, and which ranks it shares what with; every list begins with the lowest rank."""

    mesh: Mesh
    rank: int
    data: int
    replica: int
    shard: int
    tensor: int

    @property
    def expert(self) -> int:
        """Which part of the experts this rank holds."""
        return self.data % self.mesh.expert

    @property
    def tensor_ranks(self) -> Ranks:
        """Those that share every matrix product with this one."""
        first = self.data * self.mesh.tensor
        return tuple(range(first, first + self.mesh.tensor))

    @property
    def data_ranks(self) -> Ranks:
        """Those with the same tensor coordinate: they hold, or cut, the same tensors."""
        return tuple(self._rank(data) for data in range(self.mesh.data_size))

    @property
    def shard_ranks(self) -> Ranks:
        """Those over which this replica is cut."""
        first = self.replica * self.mesh.shard
        return tuple(self._rank(first + shard) for shard in range(self.mesh.shard))

    @property
    def block_ranks(self) -> Ranks:
        """All ranks of this replica, tensor ranks with them."""
        size = self.mesh.shard * self.mesh.tensor
        return tuple(range(self.replica * size, (self.replica + 1) * size))

    @property
    def replica_ranks(self) -> Ranks:
        """Those that hold the same shard."""
        return tuple(
            self._rank(replica * self.mesh.shard + self.shard) for replica in range(self.mesh.replicas)
        )

    @property
    def expert_ranks(self) -> Ranks:
        """Those that together hold all experts, and send each other tokens."""
        first = self.data - self.expert
        return tuple(self._rank(first + expert) for expert in range(self.mesh.expert))

    @property
    def same_expert_ranks(self) -> Ranks:
        """Those with the same experts, this one among them."""
        return tuple(self._rank(data) for data in range(self.expert, self.mesh.data_size, self.mesh.expert))

    @property
    def expert_shard_ranks(self) -> Ranks:
        """Those over which the parameters of this rank's experts are cut."""
        size, own = self.mesh.expert_shard, self.same_expert_ranks
        first = self.data // self.mesh.expert // size * size
        return own[first : first + size]

    @property
    def expert_replica_ranks(self) -> Ranks:
        """Those that hold the same part of the same experts."""
        size, own = self.mesh.expert_shard, self.same_expert_ranks
        return own[self.data // self.mesh.expert % size :: size]

    def _rank(self, data: int) -> int:
        return data * self.mesh.tensor + self.tensor


def mesh_of(config: Config, world_size: int) -> Mesh:
    """The mesh of `world_size` ranks. Raises BadConfig, in words, for what does not divide."""
    mesh = _mesh(config.parallel, world_size)
    for holds, message in (*_mesh_rules(mesh), *_model_rules(mesh, config.model)):
        if not holds:
            raise BadConfig(message)
    return mesh


def _mesh(parallel: ParallelConfig, world_size: int) -> Mesh:
    if parallel.tensor < 1 or parallel.expert < 1 or parallel.shard < 0:
        raise BadConfig(
            f"parallel.tensor={parallel.tensor} and parallel.expert={parallel.expert} must be at least 1, "
            f"parallel.shard={parallel.shard} at least 0"
        )
    if world_size % parallel.tensor:
        raise BadConfig(
            f"parallel.tensor={parallel.tensor} does not divide the {world_size} ranks; "
            f"use one of {_divisors(world_size)}"
        )
    data = world_size // parallel.tensor
    shard = parallel.shard or data
    if data % shard:
        raise BadConfig(
            f"parallel.shard={shard} does not divide the {data} ranks that are left ({world_size} ranks / "
            f"parallel.tensor={parallel.tensor}); use one of {_divisors(data)}, or 0 for all"
        )
    return Mesh(data // shard, shard, parallel.tensor, parallel.expert)


def _mesh_rules(mesh: Mesh) -> list[tuple[bool, str]]:
    # Experts lie inside a replica's shards, or over several whole replicas: then every group is regular.
    fitting = [n for n in _divisors(mesh.data_size) if mesh.shard % n == 0 or n % mesh.shard == 0]
    return [
        (
            mesh.expert in fitting,
            f"parallel.expert={mesh.expert} must divide the {mesh.data_size} data ranks "
            f"({mesh.replicas} replicas x {mesh.shard} shards) and divide, or be a multiple of, the shards; "
            f"use one of {fitting}",
        )
    ]


def _model_rules(mesh: Mesh, model: ModelConfig) -> list[tuple[bool, str]]:
    tensor = mesh.tensor
    cut = {"heads": model.heads, "kv_heads": model.kv_heads, "seq_len": model.seq_len}
    if not model.experts or model.dense_layers:
        cut["ffn"] = model.ffn
    if model.experts:
        cut["expert_ffn"] = model.expert_ffn or model.ffn
        cut["shared_ffn"] = model.shared_ffn
    rules = [
        (
            size % tensor == 0,
            f"parallel.tensor={tensor} does not divide model.{name}={size}: "
            "every tensor rank takes an equal part",
        )
        for name, size in cut.items()
    ]
    return [
        *rules,
        (
            tensor == 1 or model.dropout == 0,
            f"model.dropout={model.dropout} with parallel.tensor={tensor}: tensor ranks would drop different "
            "parts of the same product; set model.dropout=0 or parallel.tensor=1",
        ),
        (
            mesh.expert == 1 or model.experts > 0,
            f"parallel.expert={mesh.expert} spreads experts, but model.experts=0; set parallel.expert=1",
        ),
        (
            model.experts % mesh.expert == 0,
            f"parallel.expert={mesh.expert} does not divide model.experts={model.experts}",
        ),
    ]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
