"""Every way to lay the model over ranks gives the same training."""

import pytest

from .gang import Yard

LAYOUTS = {
    "one rank": (1, ()),
    "two replicas, four micro-batches each": (2, ("--batch.micro_batch=2",)),
    "two shards": (2, ("--parallel.shard=0",)),
    "two shards, two micro-batches each": (2, ("--parallel.shard=0", "--batch.micro_batch=4")),
    "four shards": (4, ("--parallel.shard=0",)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_losses_are_those_of_two_replicas(yard: Yard, uninterrupted: dict[int, float], case: str) -> None:
    ranks, words = LAYOUTS[case]
    losses = yard.run(*words, ranks=ranks).losses()
    assert losses == pytest.approx(uninterrupted, abs=1e-4)


def test_a_tied_head_trains_the_same_replicated_and_sharded_and_resumes(yard: Yard) -> None:
    words = ("--model.tie=true", "--train.steps=4")
    replicated = yard.run(*words, ranks=2).losses()
    sharded = yard.start(
        *words, "--parallel.shard=0", f"--checkpoint.dir={yard.folder}/sharded", ranks=2,
        at={"rank": 0, "point": "due", "step": 4, "signal": "SIGKILL"},
    )  # fmt: skip
    sharded.end_of(0)
    assert sharded.losses() == pytest.approx(replicated, abs=1e-4)
    rest = yard.run(*words, "--parallel.shard=0", f"--checkpoint.dir={yard.folder}/sharded", ranks=2)
    assert rest.losses() == {step: sharded.losses()[step] for step in (3, 4)}


@pytest.mark.parametrize(("shard", "ranks"), [(1, 1), (1, 4), (0, 4)])
def test_what_two_shards_saved_is_loaded_by_any_layout(
    yard: Yard, uninterrupted: dict[int, float], shard: int, ranks: int
) -> None:
    yard.run("--parallel.shard=0", "--train.steps=4", "--optim.horizon_steps=8", ranks=2)
    rest = yard.run(f"--parallel.shard={shard}", ranks=ranks)
    assert rest.losses() == pytest.approx({step: uninterrupted[step] for step in (5, 6, 7, 8)}, abs=1e-4)


@pytest.mark.parametrize("shard", [1, 0])
def test_bfloat16_follows_float32_roughly(yard: Yard, uninterrupted: dict[int, float], shard: int) -> None:
    losses = yard.run("--parallel.compute_dtype=bfloat16", f"--parallel.shard={shard}", ranks=2).losses()
    assert losses == pytest.approx(uninterrupted, abs=0.05)
    assert losses != uninterrupted
