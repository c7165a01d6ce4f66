"""What a model holds or draws besides its parameters survives restarts: dropout's generator, experts' biases, loads."""

import signal

import pytest

from .gang import Yard
from .trainings import EXPERTS

DROPOUT = ("--model.dropout=0.2", "--batch.micro_batch=4")
TRAININGS = {
    "dropout": (2, DROPOUT),
    "dropout, recomputed, on two shards": (
        2,
        (*DROPOUT, "--parallel.shard=2", "--parallel.recompute=selective"),
    ),
    "experts with dropout, recomputed": (1, (*DROPOUT, *EXPERTS, "--parallel.recompute=block")),
    "experts on two ranks with dropout": (2, (*DROPOUT, *EXPERTS, "--parallel.expert=2")),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_losses_after_two_kills_in_a_row_are_bit_for_bit_those_of_an_uninterrupted_run(
    yard: Yard, case: str
) -> None:
    ranks, words = TRAININGS[case]
    straight = yard.run(*words, "--checkpoint.dir=", ranks=ranks).losses()
    assert sorted(straight) == list(range(1, 9))
    for step in (4, 6):
        gang = yard.start(
            *words, ranks=ranks, at={"rank": ranks - 1, "point": "due", "step": step, "signal": "SIGKILL"}
        )
        assert gang.end_of(ranks - 1) == -signal.SIGKILL
        assert gang.losses() == {seen: straight[seen] for seen in gang.losses()}
    last = yard.run(*words, ranks=ranks)
    assert last.losses() == {step: straight[step] for step in (5, 6, 7, 8)}


def test_recomputation_with_dropout_changes_no_loss(yard: Yard) -> None:
    losses = [
        yard.run(*DROPOUT, *EXPERTS, "--checkpoint.dir=", f"--parallel.recompute={kind}").losses()
        for kind in ("none", "selective", "block")
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("kind", ["selective", "block"])
def test_blocks_computed_again_exchange_and_gather_again_and_change_no_loss(yard: Yard, kind: str) -> None:
    """With experts on two ranks, everything cut over shards besides: collectives run inside what is computed again."""
    words = (*EXPERTS, "--train.steps=4", "--checkpoint.dir=", "--parallel.expert=2", "--parallel.shard=2")
    plain = yard.run(*words, ranks=2)
    again = yard.run(*words, f"--parallel.recompute={kind}", ranks=2)
    assert again.losses() == plain.losses()
    assert again.readings("grad_norm") == plain.readings("grad_norm")
