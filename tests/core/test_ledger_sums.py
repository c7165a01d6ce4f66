"""Seeded lives in which suspension, hand-over and overlapping interruptions surely happen: every second is booked.

The lives of `test_lives.py` check the sums at every pass as well; here the clock is the cluster's own, and what
went wrong is not left to luck.
"""

from typing import Any

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import Stage, TrainingJobStatus
from rerail_operator.core.ledger import held_seconds
from rerail_operator.core.plan import Plan
from rerail_operator.core.world import Exit, World

from .lives import Life
from .toy_cluster import ToyNode

SEEDS = range(24)
TOLERANCE = 0.1
SETTLE = 40
"""Ticks of a second in which a gang is expected to train again."""


class Booked(Life):
    """A life with one job that lasts, told what befalls it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.overlapped = 0
        self.operator.trouble = 0.0
        for number in range(12):  # enough for two jobs of the largest size
            self.cluster.nodes.setdefault(f"n{number}", ToyNode(f"n{number}"))
        for uid, job in self.cluster.jobs.items():
            spec = job.spec.model_copy(update={"suspend": False, "active_deadline_seconds": None})
            policy = spec.failure_policy.model_copy(update={"max_restarts": 50})
            spec = spec.model_copy(update={"failure_policy": policy})
            self.cluster.jobs[uid] = job.model_copy(update={"spec": spec})
            program = self.cluster.programs[uid]
            program.fails_at, program.total_steps, program.reports = None, 2_000, True

    def _witness(self, uid: str, world: World, plan: Plan) -> None:
        super()._witness(uid, world, plan)
        assert world.job is not None
        before, after = world.job.status.incidents, plan.status.incidents if plan.status else ()
        if before and after and after[-1].number > before[-1].number and before[-1].resolved_time is None:
            self.overlapped += 1

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self._tick(1.0)

    def fail(self) -> None:
        """A rank of every job fails, where ranks run."""
        for uid in self.cluster.jobs:
            running = [
                a for a in self.cluster.agents.values() if a.job == uid and a.state is AgentState.RUNNING
            ]
            if running:
                self.blows += 1
                agent = self.rng.choice(running)
                self.cluster.rank_ends(agent.uid, Exit(1, rank=0, exception=f"Fault{self.blows}"))

    def statuses(self) -> list[TrainingJobStatus]:
        return [job.status for job in self.cluster.jobs.values()]

    def stalled(self, uid: str) -> float:
        return self.cluster.programs[uid].stalled_ever

    def suspend(self, value: bool) -> None:
        for uid in self.cluster.jobs:
            self.cluster.change_spec(uid, suspend=value)

    def check_sums(self, slack: float) -> None:
        """`slack`: seconds that may have passed since the status was last written."""
        for job in self.cluster.jobs.values():
            ledger, created = job.status.ledger, job.metadata.creation_timestamp
            assert created is not None and ledger.stage_since is not None
            parts = ledger.productive_seconds + sum(ledger.lost_seconds.values())
            assert abs(parts - ledger.wall_seconds) < TOLERANCE
            lived = (self.cluster.now - created).total_seconds()
            assert lived - slack - TOLERANCE <= parts <= lived + TOLERANCE
            # What the program says of its saves is booked, once: less what died with a round untold.
            stalled, told = (
                ledger.lost_seconds.get(Stage.CHECKPOINT_STALL, 0.0),
                self.stalled(job.metadata.uid),
            )
            assert told * 0.5 <= stalled <= told + TOLERANCE
            over = [i for i in job.status.incidents[:-1]] + [
                i for i in job.status.incidents[-1:] if i.resolved_time is not None
            ]
            assert len(job.status.incidents) < 16
            cost = sum(map(held_seconds, over))
            assert abs(sum(ledger.lost_seconds_by_class.values()) - cost) < TOLERANCE
            for incident in job.status.incidents:
                if incident.resolved_time is not None and incident.start_time is not None:
                    took = (incident.resolved_time - incident.start_time).total_seconds()
                    assert abs(sum(incident.stage_seconds.values()) - took) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_every_second_is_booked_once(seed: int) -> None:
    life = Booked(seed)
    life.ticks(SETTLE)
    life.fail()
    life.ticks(life.rng.randrange(2, 8))
    life.fail()  # where ranks run again already: while they replay or load, a second interruption in the first
    life.ticks(SETTLE)
    life.operator.restart(life.rng.choice((3, 12)))
    life.fail()  # nobody leads
    life.ticks(SETTLE)
    life.check_sums(slack=12)
    life.suspend(True)
    life.ticks(SETTLE)
    life.suspend(False)
    life.ticks(SETTLE)
    life.fail()
    life.ticks(1)
    life.suspend(True)  # in the middle of an interruption
    life.ticks(SETTLE)
    life.suspend(False)
    life.ticks(2 * SETTLE)
    life.check_sums(slack=12)
    for status in life.statuses():
        assert status.ledger.lost_seconds.get(Stage.SUSPENDED, 0) > SETTLE / 2
        assert status.ledger.lost_seconds.get(Stage.DETECTION, 0) > 0
        assert status.ledger.productive_seconds > 0


def test_among_these_lives_there_are_interruptions_within_interruptions() -> None:
    def overlaps(seed: int) -> int:
        life = Booked(seed)
        life.ticks(SETTLE)
        for _ in range(6):
            life.fail()
            life.ticks(life.rng.randrange(2, 6))
        life.ticks(SETTLE)
        life.check_sums(slack=12)
        return life.overlapped

    found: list[Any] = [overlaps(seed) for seed in SEEDS]
    assert sum(found) > 10


def test_a_hand_over_during_a_failure_is_booked_to_the_failure() -> None:
    life = Booked(5)
    life.ticks(SETTLE)
    before = [status.ledger for status in life.statuses()]
    life.operator.restart(12)
    life.fail()
    life.ticks(SETTLE)
    for was, status in zip(before, life.statuses(), strict=True):
        gained = status.ledger.lost_seconds.get(Stage.DETECTION, 0) - was.lost_seconds.get(Stage.DETECTION, 0)
        assert gained >= 12 - TOLERANCE
