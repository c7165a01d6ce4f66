"""Where ranks stand: groups are regular for every mesh, and what does not divide is refused in words. No torch."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rerail_trainer.config import Config, ModelConfig, ParallelConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.parallel.mesh import Mesh, Place, mesh_of

GROUPS = {
    "tensor_ranks": lambda mesh: mesh.tensor,
    "data_ranks": lambda mesh: mesh.data_size,
    "shard_ranks": lambda mesh: mesh.shard,
    "replica_ranks": lambda mesh: mesh.replicas,
    "block_ranks": lambda mesh: mesh.shard * mesh.tensor,
    "expert_ranks": lambda mesh: mesh.expert,
    "same_expert_ranks": lambda mesh: mesh.data_size // mesh.expert,
    "expert_shard_ranks": lambda mesh: mesh.expert_shard,
    "expert_replica_ranks": lambda mesh: mesh.expert_replicas,
}


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    replicas, shard, tensor = (draw(st.integers(1, 6)) for _ in range(3))
    fitting = [n for n in range(1, replicas * shard + 1) if replicas * shard % n == 0]
    expert = draw(st.sampled_from(fitting))
    assume(shard % expert == 0 or expert % shard == 0)
    return Mesh(replicas, shard, tensor, expert)


@given(meshes())
def test_every_kind_of_group_parts_the_ranks_evenly(mesh: Mesh) -> None:
    places = [mesh.at(rank) for rank in range(mesh.world_size)]
    for kind, size in GROUPS.items():
        groups = [getattr(place, kind) for place in places]
        assert all(place.rank in group for place, group in zip(places, groups, strict=True)), kind
        assert all(len(group) == size(mesh) and list(group) == sorted(group) for group in groups), kind
        # Members agree on their group, so groups are either the same or have no rank in common.
        assert all(groups[rank] == group for group in groups for rank in group), kind


@given(meshes())
def test_a_group_shares_what_it_says(mesh: Mesh) -> None:
    places = [mesh.at(rank) for rank in range(mesh.world_size)]

    def alike(kind: str, *coordinates: str) -> None:
        for place in places:
            others = [mesh.at(rank) for rank in getattr(place, kind)]
            assert len({tuple(getattr(o, c) for c in coordinates) for o in others}) == 1

    alike("tensor_ranks", "data", "replica", "shard", "expert")
    alike("shard_ranks", "replica", "tensor")
    alike("replica_ranks", "shard", "tensor")
    alike("same_expert_ranks", "expert", "tensor")
    alike("expert_shard_ranks", "expert", "tensor")
    for place in places:
        assert sorted(mesh.at(rank).expert for rank in place.expert_ranks) == list(range(mesh.expert))
        assert {mesh.at(rank).data for rank in place.data_ranks} == set(range(mesh.data_size))


@given(meshes())
def test_experts_are_cut_within_a_replica_of_shards(mesh: Mesh) -> None:
    for place in (mesh.at(rank) for rank in range(mesh.world_size)):
        assert len({mesh.at(rank).replica for rank in place.expert_shard_ranks}) == 1
        assert _product(place, "expert_shard_ranks", "expert_replica_ranks") == set(place.same_expert_ranks)
        assert _product(place, "shard_ranks", "replica_ranks") == set(place.data_ranks)


def _product(place: Place, columns: str, rows: str) -> set[int]:
    return {rank for row in getattr(place, rows) for rank in getattr(place.mesh.at(row), columns)}


def test_all_that_are_left_are_shards_where_the_setting_is_0() -> None:
    config = Config(parallel=ParallelConfig(shard=0, tensor=2))
    assert mesh_of(config, 8) == Mesh(replicas=1, shard=4, tensor=2)
    assert mesh_of(Config(), 3) == Mesh(replicas=3)


WORDS = {
    Mesh(): "1 rank",
    Mesh(replicas=4): "4 replicas",
    Mesh(replicas=2, shard=4, tensor=2): "2x4 shard, tensor 2",
    Mesh(replicas=4, expert=2): "4 replicas, expert 2",
}


@pytest.mark.parametrize("mesh", WORDS)
def test_a_mesh_is_told_in_words(mesh: Mesh) -> None:
    assert str(mesh) == WORDS[mesh]


DENSE = ModelConfig()
MIXTURE = ModelConfig(experts=6, expert_ffn=96, shared_ffn=64)
REFUSED = {
    "tensor ranks that do not divide the ranks": (
        DENSE, ParallelConfig(tensor=3), 4,
        "parallel.tensor=3 does not divide the 4 ranks; use one of [1, 2, 4]",
    ),
    "shards that do not divide what is left": (
        DENSE, ParallelConfig(shard=4, tensor=2), 12,
        "parallel.shard=4 does not divide the 6 ranks that are left (12 ranks / parallel.tensor=2); "
        "use one of [1, 2, 3, 6], or 0 for all",
    ),
    "a negative number": (DENSE, ParallelConfig(shard=-1), 4, "parallel.shard=-1 at least 0"),
    "heads": (DENSE, ParallelConfig(tensor=8), 8, "parallel.tensor=8 does not divide model.heads=12"),
    "key heads": (
        ModelConfig(kv_heads=2), ParallelConfig(tensor=4), 4,
        "parallel.tensor=4 does not divide model.kv_heads=2",
    ),
    "the width of an expert": (
        ModelConfig(experts=2, expert_ffn=97), ParallelConfig(tensor=2), 2,
        "parallel.tensor=2 does not divide model.expert_ffn=97",
    ),
    "the sequence": (
        ModelConfig(seq_len=1023), ParallelConfig(tensor=2), 2,
        "parallel.tensor=2 does not divide model.seq_len=1023",
    ),
    "dropout on tensor ranks": (
        ModelConfig(dropout=0.1), ParallelConfig(tensor=2), 2,
        "set model.dropout=0 or parallel.tensor=1",
    ),
    "experts that there are not": (
        DENSE, ParallelConfig(expert=2), 2,
        "parallel.expert=2 spreads experts, but model.experts=0; set parallel.expert=1",
    ),
    "experts that cannot be dealt evenly": (
        MIXTURE, ParallelConfig(expert=4), 4, "parallel.expert=4 does not divide model.experts=6",
    ),
    "more expert ranks than data ranks": (
        MIXTURE, ParallelConfig(expert=2, tensor=2), 2,
        "parallel.expert=2 must divide the 1 data ranks (1 replicas x 1 shards)",
    ),
    "expert ranks across shards": (
        MIXTURE, ParallelConfig(expert=3, shard=2), 6,
        "parallel.expert=3 must divide the 6 data ranks (3 replicas x 2 shards) and divide, or be a multiple of, "
        "the shards; use one of [1, 2, 6]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_to_write_instead(case: str) -> None:
    model, parallel, ranks, message = REFUSED[case]
    with pytest.raises(BadConfig) as refusal:
        mesh_of(Config(model=model, parallel=parallel), ranks)
    assert message in refusal.value.message
