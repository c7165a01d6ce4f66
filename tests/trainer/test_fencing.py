"""Who may write into a checkpoint folder: one job, one round, and no left-over of an older one."""

import os
import signal

from .gang import Yard, free_port

JOB_A = {"RERAIL_JOB": "team/a", "RERAIL_JOB_UID": "uid-a"}
JOB_B = {"RERAIL_JOB": "team/b", "RERAIL_JOB_UID": "uid-b"}
LONG = ("--train.steps=100000", "--optim.horizon_steps=100000")


def in_round(job: dict[str, str], number: int) -> dict[str, str]:
    return {**job, "RERAIL_ROUND": str(number)}


def frozen_before_its_commit(yard: Yard) -> object:
    """Round 4 of job a, whose rank 0 sleeps with a finished save of step 4 that it has not committed yet."""
    gang = yard.start(
        ranks=2,
        env=in_round(JOB_A, 4),
        at={"rank": 0, "point": "manifest-written", "step": 4, "signal": "SIGSTOP"},
    )
    gang.until_frozen(0)
    return gang


def test_a_zombie_of_an_older_round_cannot_commit_and_ends_itself(
    yard: Yard, uninterrupted: dict[int, float]
) -> None:
    zombie = frozen_before_its_commit(yard)
    assert yard.committed() == [2]
    newer = yard.run(ranks=2, env=in_round(JOB_A, 5))
    before = {path: path.read_bytes() for path in yard.checkpoints.rglob("step-*/*")}
    os.kill(zombie.pids[0], signal.SIGCONT)
    assert zombie.wait() == [80, 80]
    assert "round 4 of job team/a is over" in zombie.output()
    assert {path: path.read_bytes() for path in yard.checkpoints.rglob("step-*/*")} == before
    assert newer.losses() == {step: loss for step, loss in uninterrupted.items() if step > 2}


def test_a_commit_just_before_the_new_round_counts(yard: Yard) -> None:
    gang = yard.start(
        ranks=2,
        env=in_round(JOB_A, 4),
        at={"rank": 0, "point": "committed", "step": 4, "signal": "SIGSTOP"},
    )
    gang.until_frozen(0)
    newer = yard.run(ranks=2, env=in_round(JOB_A, 5))
    assert [line["resumed_from"] for line in newer.progress() if "resumed_from" in line] == [4]
    before = yard.committed()
    # The zombie has only pruning left to do, and may not do it.
    os.kill(gang.pids[0], signal.SIGCONT)
    assert gang.wait() == [80, 80]
    assert yard.committed() == before


def test_a_late_start_of_an_older_round_is_refused_and_disturbs_nobody(yard: Yard) -> None:
    newer = yard.start(*LONG, env=in_round(JOB_A, 5))
    newer.until_step(3)
    late = yard.start(*LONG, env=in_round(JOB_A, 4))
    assert late.wait() == [80]
    assert "round 4 of team/a (uid uid-a) is over: round 5 has begun" in late.output()
    newer.until(lambda: len(yard.committed()) >= 2)
    newer.signal(signal.SIGTERM)
    assert newer.wait() == [75]


def test_a_live_foreign_owner_is_refused_by_name(yard: Yard) -> None:
    owner = yard.start(*LONG, env=in_round(JOB_A, 1))
    owner.until_step(3)
    intruder = yard.start(*LONG, ranks=2, env=in_round(JOB_B, 1))
    assert intruder.wait() == [64, 64]
    assert "in use by job team/a (uid uid-a)" in intruder.output()
    owner.until(lambda: len(yard.committed()) >= 2)


def test_an_owner_that_stopped_is_not_pushed_out_without_a_word(yard: Yard) -> None:
    owner = yard.start(*LONG, env=in_round(JOB_A, 1))
    owner.until_step(3)
    owner.signal(signal.SIGTERM)
    assert owner.wait() == [75]
    step = max(yard.committed())
    refused = yard.start(*LONG, env=in_round(JOB_B, 1))
    assert refused.wait() == [64]
    assert "--checkpoint.take_over=team/a" in refused.output()
    heir = yard.start(*LONG, "--checkpoint.take_over=team/a", env=in_round(JOB_B, 1))
    heir.until_output(f"continued from job team/a, step {step}")


def test_a_finished_owner_hands_its_steps_on_and_they_are_never_removed(yard: Yard) -> None:
    yard.run("--train.steps=4", "--optim.horizon_steps=8", env=in_round(JOB_A, 3))
    heir = yard.run("--checkpoint.every_steps=1", env=in_round(JOB_B, 1))
    assert "continued from job team/a, step 4" in heir.output()
    assert sorted(heir.losses()) == [5, 6, 7, 8]
    assert yard.committed() == [2, 4, 7, 8]


def test_the_same_name_with_another_uid_waits_for_the_old_process_and_then_goes_on(yard: Yard) -> None:
    """Deleted and applied again: Kubernetes names are unique, so the former job is gone once nothing of it lives."""
    former = yard.start(*LONG, env=in_round(JOB_A, 7))
    former.until_step(5)
    reborn = {**JOB_A, "RERAIL_JOB_UID": "uid-c"}
    early = yard.start(*LONG, env=in_round(reborn, 1))
    assert early.wait() == [64]
    former.kill()
    later = yard.start(*LONG, env=in_round(reborn, 1))
    later.until_output("continued from job team/a, step")


def test_another_local_run_in_the_same_folder_is_refused(yard: Yard) -> None:
    first = yard.start(*LONG)
    first.until_step(3)
    second = yard.start(*LONG)
    assert second.wait() == [64]
    assert f"in use by another local run, process {first.pids[0]}" in second.output()


def test_a_rank_of_an_older_round_at_the_right_door_meets_nobody(
    yard: Yard, uninterrupted: dict[int, float]
) -> None:
    """Ports are used again: an old rank may find the store of a newer round where it was told its own is."""
    port = {"MASTER_PORT": str(free_port())}
    first = yard.start(ranks=2, missing=(1,), env={**in_round(JOB_A, 5), **port})
    zombie = yard.start(
        "--parallel.init_seconds=6", ranks=2, missing=(0,), env={**in_round(JOB_A, 4), **port}
    )
    assert zombie.wait() == [85]
    assert "could not meet the others" in zombie.output()
    second = yard.start(ranks=2, missing=(0,), env={**in_round(JOB_A, 5), **port})
    assert (first.wait(), second.wait()) == ([0], [0])
    assert first.losses() == uninterrupted
