"""A mixture of experts trains the same whichever ranks its experts live on.

Largest differences measured over 20 steps, against one rank alone: loss 9.5e-7, relative gradient norm 2.4e-7,
any weight or moment at the end 1.7e-5.
"""

import pytest

from .gang import Yard, Zygote
from .trainings import EXPERTS, TWENTY, Training, assert_relayed, assert_same, trained

LAYOUTS = {
    "four shards": (4, ("--parallel.shard=0",)),
    "experts over two ranks": (2, ("--parallel.expert=2",)),
    "experts over four ranks": (4, ("--parallel.expert=4",)),
    "experts over two ranks, cut further over four shards": (
        4,
        ("--parallel.expert=2", "--parallel.shard=4"),
    ),
    "experts over two ranks and cut by two tensor ranks": (4, ("--parallel.expert=2", "--parallel.tensor=2")),
}


@pytest.fixture(scope="module")
def alone(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """20 steps on one rank."""
    return trained(Yard(zygote, tmp_path_factory.mktemp("alone")), *EXPERTS)


@pytest.mark.parametrize("case", LAYOUTS)
def test_twenty_steps_are_those_of_one_rank(yard: Yard, alone: Training, case: str) -> None:
    ranks, words = LAYOUTS[case]
    assert bool(alone.tensors["model.blocks.1.feed_forward.balance"].any())
    assert_same(trained(yard, *EXPERTS, *words, ranks=ranks), alone, loss=2e-6, norm=1e-6, tensor=1e-4)


def test_what_experts_over_two_ranks_saved_is_loaded_by_one_rank_and_by_four(
    yard: Yard, alone: Training
) -> None:
    stations = [
        (2, ("--parallel.expert=2",)),
        (1, ()),
        (4, ("--parallel.expert=4",)),
        (4, ("--parallel.expert=2", "--batch.micro_batch=2")),
        (4, ("--parallel.expert=2", "--parallel.shard=2")),
        (4, ("--parallel.expert=4", "--parallel.shard=2")),
        (4, ("--parallel.expert=2", "--parallel.tensor=2")),
        (2, ("--batch.micro_batch=2",)),
    ]
    assert_relayed(yard, alone, stations, *EXPERTS)


def test_fewer_experts_than_shards_are_cut_by_rows(yard: Yard) -> None:
    words = ("--model.experts=2", "--model.experts_per_token=1", "--train.steps=4", "--checkpoint.dir=")
    straight = yard.run(*words)
    for layout in (("--parallel.shard=0",), ("--parallel.shard=0", "--parallel.expert=2")):
        cut = yard.run(*words, *layout, ranks=4)
        assert cut.losses() == pytest.approx(straight.losses(), abs=2e-6)
        assert cut.readings("grad_norm") == pytest.approx(straight.readings("grad_norm"), rel=1e-6)


def test_bfloat16_follows_float32_roughly(yard: Yard, alone: Training) -> None:
    """Routing turns on near ties, so single tokens go elsewhere. Largest difference measured: 1e-2."""
    words = ("--parallel.compute_dtype=bfloat16", "--parallel.expert=2", "--parallel.shard=2")
    steps = (*TWENTY, "--train.steps=8", "--checkpoint.dir=")
    losses = yard.run(*steps, *EXPERTS, *words, ranks=4).losses()
    assert losses == pytest.approx({step: alone.losses[step] for step in losses}, abs=0.05)
    assert all(losses[step] != alone.losses[step] for step in losses)
