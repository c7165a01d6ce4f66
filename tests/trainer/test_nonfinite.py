"""A loss that is not finite on one rank alone: no rank takes the step, whatever the layout and the optimizer."""

import json

import pytest

from .gang import Yard
from .trainings import EXPERTS

CASES = {
    "replicas": (2, ()),
    "shards, moments in bfloat16": (2, ("--parallel.shard=0", "--optim.moment_dtype=bfloat16")),
    "tensor ranks": (2, ("--parallel.tensor=2",)),
    "experts over ranks": (2, ("--parallel.expert=2", *EXPERTS)),
    "experts over replicas of shards, by Muon": (
        4, ("--parallel.expert=2", "--parallel.shard=2", "--optim.name=muon", *EXPERTS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_no_rank_takes_the_step_and_all_end_with_code_82(yard: Yard, case: str) -> None:
    ranks, words = CASES[case]
    gang = yard.start(*words, ranks=ranks, inside="poison_one_rank")
    assert gang.wait() == [82] * ranks
    for rank in range(ranks):
        lines = (gang.folder / f"output-{rank}").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith('{"finite"')]
        assert told == [{"finite": 0.0, "changed": []}]
    assert sorted(gang.losses()) == [1, 2]


UNASKED = {
    "one rank": (1, ()),
    "replicas, two micro-batches each": (2, ("--batch.micro_batch=4",)),
    "shards, moments in bfloat16": (2, ("--parallel.shard=0", "--optim.moment_dtype=bfloat16")),
    "tensor ranks, recomputed": (2, ("--parallel.tensor=2", "--parallel.recompute=selective")),
    "experts, each rank with all": (2, EXPERTS),
    "Muon on shards": (2, ("--parallel.shard=0", "--optim.name=muon")),
    "bfloat16": (1, ("--parallel.compute_dtype=bfloat16",)),
}


@pytest.mark.parametrize("case", UNASKED)
def test_a_step_asks_the_device_for_nothing_and_its_check_does_not_either(yard: Yard, case: str) -> None:
    """The whole step, from data to weights. With experts over ranks, how many tokens travel must be asked."""
    ranks, words = UNASKED[case]
    gang = yard.run(*words, "--train.steps=4", ranks=ranks, inside="note_what_a_step_asks_the_device")
    for rank in range(ranks):
        lines = (gang.folder / f"output-{rank}").read_text().splitlines()
        [told] = [json.loads(line) for line in lines if line.startswith('{"step"')]
        assert told == {"step": [], "after": ["item", "_local_scalar_dense"]}
