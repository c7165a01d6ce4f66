"""Everything that an operator writes, as points at which it may die; and the whole life in which each is met.

A write that no point describes fails the ring: a new kind of write needs its row here, and with it its proof.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rerail_operator.shell.cluster import Kind, Object
from tests.shell.hamlet import job

from .invariants import Account, broken
from .mortal import Fate, Write
from .operators import SYSTEM
from .program import loss_of
from .village import Village

Told = Callable[[Object, Object], bool]


def _condition(status: Object, kind: str) -> str:
    return str(next((c["status"] for c in status.get("conditions") or () if c["type"] == kind), ""))


def _becomes(kind: str) -> Told:
    return lambda before, after: _condition(before, kind) != "True" and _condition(after, kind) == "True"


def _rises(field: str) -> Told:
    return lambda before, after: bool(after.get(field, 0) > before.get(field, 0))


STATUS: dict[str, Told] = {
    "status: the job is admitted": _becomes("Admitted"),
    "status: the job has ended": _becomes("Complete"),
    "status: the round is raised": _rises("round"),
    "status: the barrier is released": _rises("releasedRound"),
    "status: the ranks run": _becomes("Running"),
    "status: the job is suspended": _becomes("Suspended"),
    "status: progress and ledger": lambda before, after: True,
}
"""Guarded status writes, told apart by what they change; the first that fits."""

OTHERS: dict[tuple[str, str], str] = {
    ("create", "Lease"): "the first Lease",
    ("replace", "Lease"): "the Lease is renewed, or taken over",
    ("dry run", "Pod"): "the dry run of a pod",
    ("create", "Pod"): "a pod is created",
    ("delete", "Pod"): "a pod is deleted",
    ("patch", "Pod"): "a spare takes a node rank",
    ("delete collection", "Pod"): "the gang is deleted, bucket by bucket",
    ("create", "ConfigMap"): "the agent's ConfigMap",
    ("create", "ControllerRevision"): "the frozen template",
    ("create", "Event"): "an event",
    ("patch", "Event"): "an event is counted up",
    ("delete", "TrainingJob"): "the job's time after its end is over",
    ("order join", "agent"): "an agent is called to the barrier",
    ("order run", "agent"): "an agent is released from the barrier",
    ("order finish", "agent"): "an agent may leave",
}

STRIKES = "the record of strikes against nodes"

POINTS = (*STATUS, *OTHERS.values(), STRIKES)


def point_of(write: Write) -> str:
    """Which point a write is. Raises AssertionError for one that nobody has thought of."""
    if write.verb == "status" and write.kind == Kind.JOB:
        before, after = (write.before or {}).get("status") or {}, write.body["status"]
        return next(point for point, fits in STATUS.items() if fits(before, after))
    if write.kind == Kind.CONFIG_MAP and write.body["metadata"]["namespace"] == SYSTEM:
        return STRIKES
    found = OTHERS.get((write.verb, write.kind))
    assert found is not None, f"no point describes {write.verb} of {write.kind}: give it a row and its proof"
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """What a life comes to, whoever dies in it: rounds that train, restarts, and pods that are ever made."""

    rounds: tuple[int, ...]
    restarts: int
    pods: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a life."""

    account: Account
    writes: tuple[Write, ...]
    operators: int
    pods_made: int
    trained: tuple[int, ...]
    expected: Expected

    def problems(self) -> list[str]:
        """What does not hold."""
        found, expected = broken(self.account), self.expected
        if self.pods_made != expected.pods:
            found.append(f"{self.pods_made} pods were made, {expected.pods} were needed")
        if self.trained != expected.rounds:
            found.append(f"rounds {self.trained} trained instead of {expected.rounds}")
        return found


async def whole_life(fate: Fate) -> Outcome:
    """A rank dies, a pod is deleted, a node is lost, the job is suspended, resumed and completes; its time runs out."""
    async with Village(fate) as village:
        await village.cluster.create(Kind.JOB, "default", job(nodes=3, ttlSecondsAfterFinished=30))
        program = village.program
        await village.until("step 3", lambda _: program.step >= 3)
        village.agent_of(1).rank_ends(signal=9)
        await village.until("step 6", lambda seen: program.round > 1 and program.step >= 6)
        await village.cluster.delete(Kind.POD, "default", village.agent_of(2).pod, grace_seconds=1)
        await village.until("step 10", lambda seen: seen["restarts"]["total"] >= 2 and program.step >= 10)
        lost = village.agent_of(0).node
        village.lose_node(lost)
        await village.until("step 14", lambda seen: seen["restarts"]["total"] >= 3 and program.step >= 14)
        village.node_returns(lost)
        await village.cluster.patch(Kind.JOB, "default", "gpt", {"spec": {"suspend": True}})
        await village.until(
            "no rank runs", lambda seen: not village.gang_agents() and seen["phase"] == "Suspended"
        )
        await village.cluster.patch(Kind.JOB, "default", "gpt", {"spec": {"suspend": False}})
        # The gang, one for a deleted pod, one for a lost node, and the gang after its suspension.
        return await _outcome(village, Expected((1, 2, 3, 4, 5), restarts=3, pods=3 + 1 + 1 + 3))


async def life_with_a_spare(fate: Fate) -> Outcome:
    """A pod is deleted and a spare takes its node rank; the job completes."""
    async with Village(fate) as village:
        village.program.total_steps = 60  # longer than the next leader needs: spares come after the gang
        await village.cluster.create(Kind.JOB, "default", job(nodes=2, spares=1, ttlSecondsAfterFinished=30))
        await village.until("a spare waits", lambda _: len(village.agents) == 3 and village.program.step >= 2)
        await village.cluster.delete(Kind.POD, "default", village.agent_of(1).pod, grace_seconds=1)
        # The gang, its spare, and the spare that follows the one that was called in.
        return await _outcome(village, Expected((1, 2), restarts=1, pods=2 + 1 + 1))


async def _outcome(village: Village, expected: Expected) -> Outcome:
    """See the job to its end, and its object go."""
    program = village.program
    status = await village.until("the end", lambda seen: seen["phase"] in ("Complete", "Failed"))
    await village.until_gone()
    account = Account(
        status=status,
        restarts=expected.restarts,
        most_restarts=expected.restarts,
        lived=village.ended_at,
        slack=0.5,
        losses=program.losses,
        reference={step: loss_of(step) for step in range(1, program.total_steps + 1)},
        resumptions=program.resumptions,
        pods=[pod["metadata"]["name"] for pod in await village.pods()],
        processes=[number for number, _ in enumerate(village.agents)],
    )
    made = len(set(village.pods_made))
    trained = tuple(begun.round for begun in program.resumptions)
    writes = tuple(village.fate.writes)
    return Outcome(account, writes, village.operators.lives, made, trained, expected)


LIVES = {"a whole life": whole_life, "a life with a spare": life_with_a_spare}
"""Together they meet every point."""
