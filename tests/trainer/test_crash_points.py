"""SIGKILL at every point of a save, of a rank or of its writer: the newest committed step always loads, and none is
lost.
"""

import os
import random
import signal
import time

import pytest

from .gang import Gang, Yard, is_writer

# In order of a save, and the rank that meets its end there. The third save is the first that has something to
# remove: how many steps are committed then, and is the first of them, step 2, still one of them?
POINTS = {
    "C1 before anything": ("due", 0, 2, True),
    "C2 a copy of the state is taken": ("staged", 1, 2, True),
    "C3 the work folder is made": ("folder-made", 0, 2, True),
    "C4 one file of one rank is written": ("tensors-written", 3, 2, True),
    "C5 all files of one rank are written": ("files-written", 2, 2, True),
    "C6 all files of all ranks are written": ("all-ranks-written", 0, 2, True),
    "C7 the manifest is written, inside the work folder": ("manifest-written", 0, 2, True),
    "C8 the rename is done": ("committed", 0, 3, True),
    "C9 an older step is taken out and not yet removed": ("taken-out", 0, 2, False),
    "C9 older steps are removed": ("pruned", 0, 2, False),
}
BESIDE = ("--checkpoint.mode=process", "--optim.horizon_steps=8")
"""Training goes on while a save is written, so the steps of saves depend on the machine: their order does not."""
STEPS = 60


def resumed_from(gang: Gang) -> list[int]:
    return [line["resumed_from"] for line in gang.progress() if "resumed_from" in line]


def assert_same(losses: dict[int, float], undisturbed: dict[int, float]) -> None:
    """Bit for bit, where both are known."""
    common = losses.keys() & undisturbed.keys()
    assert common
    assert {step: losses[step] for step in common} == {step: undisturbed[step] for step in common}


@pytest.mark.parametrize("case", POINTS)
def test_kill_of_a_rank_at_a_point_of_the_third_save_on_4_ranks(
    yard: Yard, undisturbed_by_four: dict[int, float], case: str
) -> None:
    point, rank, count, first_is_there = POINTS[case]
    gang = yard.start(
        *BESIDE,
        "--train.steps=100000",
        ranks=4,
        at={"rank": rank, "point": point, "save": 3, "signal": "SIGKILL"},
    )
    assert gang.end_of(rank) == -signal.SIGKILL
    committed = yard.committed()
    assert (len(committed), 2 in committed) == (count, first_is_there)
    newest = max(committed)
    rest = yard.run(*BESIDE, f"--train.steps={newest + 3}", ranks=4)
    assert resumed_from(rest) == [newest]
    assert sorted(rest.losses()) == [newest + 1, newest + 2, newest + 3]
    assert_same(gang.losses(), undisturbed_by_four)
    assert_same(rest.losses(), gang.losses() | undisturbed_by_four)
    assert len(yard.committed()) == 2
    assert max(yard.committed()) == newest + 3


@pytest.mark.parametrize("case", ["C1 before anything", "C7 the manifest is written, inside the work folder"])
def test_kill_of_a_rank_at_a_point_of_a_save_that_training_waits_for(
    yard: Yard, uninterrupted: dict[int, float], case: str
) -> None:
    point, rank, *_ = POINTS[case]
    gang = yard.start(ranks=2, at={"rank": rank, "point": point, "step": 4, "signal": "SIGKILL"})
    assert gang.end_of(rank) == -signal.SIGKILL
    assert yard.committed() == [2]
    rest = yard.run(ranks=2)
    assert resumed_from(rest) == [2]
    assert rest.losses() == {step: loss for step, loss in uninterrupted.items() if step > 2}
    assert yard.committed() == [6, 8]


@pytest.mark.parametrize("case", POINTS)
def test_kill_of_a_writer_at_a_point_of_the_third_save_costs_at_most_that_save(
    yard: Yard, undisturbed: dict[int, float], case: str
) -> None:
    point, rank, *_ = POINTS[case]
    rank %= 2
    gang = yard.start(
        *BESIDE,
        f"--train.steps={STEPS}",
        ranks=2,
        at={"rank": rank, "point": point, "save": 3, "signal": "SIGKILL", "victim": "writer"},
    )
    assert gang.wait() == [0, 0], gang.output()
    assert gang.losses() == undisturbed
    assert f"rank {rank}: its writer ended with SIGKILL; training goes on" in gang.output()
    [failed] = gang.events("save-failed")
    assert failed["reason"] == "writer"
    assert gang.events("commit")[-1]["step"] == max(yard.committed()) == STEPS
    assert len(yard.committed()) == 2
    assert not list(yard.checkpoints.glob(".work/*/step-*"))


def test_kills_at_50_random_moments_on_4_ranks_lose_nothing_that_was_committed(yard: Yard) -> None:
    """Seeded: which victim, and after how long. A killed rank ends the round, a killed writer only a save."""
    moments = random.Random(8)
    words = (*BESIDE, "--train.steps=100000", "--batch.tokens_per_step=64", "--batch.micro_batch=1")
    known: dict[int, float] = {}
    newest = kills = 0
    gang = None
    while kills < 50:
        if gang is None:
            gang = yard.start(*words, ranks=4)
            gang.until_step(newest + 1)
            assert resumed_from(gang) == [newest or None]
        time.sleep(moments.uniform(0.0, 0.15))
        rank = moments.randrange(4)
        kills += 1
        if moments.random() < 0.7:
            os.kill(gang.writer(rank), signal.SIGKILL)
            continue
        os.kill(gang.pids[rank], signal.SIGKILL)
        assert gang.end_of(rank) == -signal.SIGKILL
        told = max((line.get("checkpoint_step", 0) for line in gang.progress()), default=0)
        newest, gang = _check(yard, gang, known, max(told, newest)), None
    last = yard.run(*BESIDE, f"--train.steps={newest + 2}", *words[3:], ranks=4) if gang is None else gang
    if gang is not None:
        gang.signal(signal.SIGTERM)
        assert gang.wait() == [75] * 4
    _check(yard, last, known, newest)


def _check(yard: Yard, gang: Gang, known: dict[int, float], told: int) -> int:
    """No step's loss differs from what an earlier round computed for it; what was told to be committed, or was
    committed before this round, is there.
    """
    losses = gang.losses()
    for step in losses.keys() & known.keys():
        assert losses[step] == known[step], step
    known.update(losses)
    newest = max(yard.committed(), default=0)
    assert newest >= told
    return newest


def test_a_kill_between_taking_a_step_out_and_removing_it_leaves_nothing_for_ever(yard: Yard) -> None:
    """What pruning has taken out but not removed lies in the round's work folder, and goes with it."""
    gang = yard.start(at={"point": "taken-out", "step": 6, "signal": "SIGKILL"})
    assert gang.wait() == [-signal.SIGKILL]
    assert yard.committed() == [4, 6]
    [rest] = (yard.checkpoints / ".work").glob("*/pruned-step-00000002.*")
    assert (rest / "MANIFEST.json").exists()
    later = yard.run()
    assert resumed_from(later) == [6]
    later.until(lambda: [path.name[:2] for path in (yard.checkpoints / ".work").iterdir()] == ["2."])
    assert yard.committed() == [6, 8]


def test_peers_of_a_killed_rank_end_by_themselves_with_a_code_outside_the_table(yard: Yard) -> None:
    """Else a victim could be taken for the root: rank 1's SIGKILL is the cause, rank 0 only lost its peer."""
    gang = yard.start(ranks=2, at={"rank": 1, "point": "due", "step": 4, "signal": "SIGKILL"})
    assert gang.wait() == [1, -signal.SIGKILL]
    assert "rerail_trainer: rank 0: " in gang.output()


def test_a_writer_ends_with_its_rank_and_never_commits_for_a_dead_one(yard: Yard) -> None:
    gang = yard.start(at={"point": "manifest-written", "step": 2, "signal": "SIGSTOP"})
    gang.until_frozen(0)
    writer = gang.writer(0)
    os.kill(gang.pids[0], signal.SIGKILL)
    gang.until(lambda: not is_writer(writer))
    assert yard.committed() == []
