"""SIGKILL at every point of a save: the newest committed step always loads, and none is lost."""

import signal

import pytest

from .gang import Yard

# Two ranks, killed while step 4 is saved; step 2 is committed. From which step must the next round go on?
POINTS = {
    "C1 before anything": ("due", 0, 2),
    "C2 the work folder is made": ("folder-made", 0, 2),
    "C3 a copy of the state is taken": ("staged", 1, 2),
    "C4 one file of one rank is written": ("tensors-written", 1, 2),
    "C5 all files of one rank are written": ("files-written", 1, 2),
    "C6 all files of all ranks are written": ("all-ranks-written", 0, 2),
    "C7 the manifest is written, inside the work folder": ("manifest-written", 0, 2),
    "C8 the rename is done": ("committed", 0, 4),
    "C9 older steps are removed": ("pruned", 0, 4),
}


@pytest.mark.parametrize("case", POINTS)
def test_kill_at_a_point_of_the_save(yard: Yard, uninterrupted: dict[int, float], case: str) -> None:
    point, rank, newest = POINTS[case]
    gang = yard.start(ranks=2, at={"rank": rank, "point": point, "step": 4, "signal": "SIGKILL"})
    assert gang.end_of(rank) == -signal.SIGKILL
    assert max(yard.committed()) == newest
    rest = yard.run(ranks=2)
    assert [line["resumed_from"] for line in rest.progress() if "resumed_from" in line] == [newest]
    assert rest.losses() == {step: loss for step, loss in uninterrupted.items() if step > newest}
    assert yard.committed() == [6, 8]


def test_a_kill_between_taking_a_step_out_and_removing_it_leaves_nothing_for_ever(yard: Yard) -> None:
    """What pruning has taken out but not removed lies in the round's work folder, and goes with it."""
    yard.run("--train.steps=2", "--optim.horizon_steps=8")
    [work] = (yard.checkpoints / ".work").iterdir()
    rest = work / "pruned-step-00000001.abc"
    rest.mkdir()
    (rest / "rank-00000.json").write_text("{}")
    gang = yard.run()
    gang.until(lambda: [path.name[:2] for path in (yard.checkpoints / ".work").iterdir()] == ["2."])


def test_peers_of_a_killed_rank_end_by_themselves_with_a_code_outside_the_table(yard: Yard) -> None:
    """Else a victim could be taken for the root: rank 1's SIGKILL is the cause, rank 0 only lost its peer."""
    gang = yard.start(ranks=2, at={"rank": 1, "point": "due", "step": 4, "signal": "SIGKILL"})
    assert gang.wait() == [1, -signal.SIGKILL]
    assert "rerail_trainer: rank 0: " in gang.output()
