"""The barrier of a round: all agents in, the release written, then told; again to whoever missed it."""

from dataclasses import replace
from datetime import datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType, Phase, Stage
from rerail_api.v1alpha1 import TrainingJob

from .advice import unadvised
from .evidence import finished_with_zero
from .gang import Seat, leftovers
from .ledger import gathering_stage
from .outcome import Outcome
from .plan import Action, Level, Note, OrderRun
from .rate import hold
from .reasons import Reason
from .restarts import delay_before
from .silence import found_about, hear, just_took_over, step_without_a_word
from .template_facts import num_proc
from .waiting import SOON, deadline_in, joins, new_round, removals, starting, stuck_memory, waiting_for
from .world import Release, World


def assemble(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome:
    """All pods are there: bring their agents to the barrier, release it, and see them run."""
    status = job.status
    round_ = status.round
    tidy = removals(world, taken, round_)
    if status.released_round == round_:
        return _run(world, job, taken, tidy, now)
    if not all(seat.at(AgentState.READY, round_) for seat in taken):
        reason, message = waiting_for(taken, round_)
        return starting(
            job,
            reason,
            message,
            gathering_stage(taken, round_),
            actions=(*tidy, *joins(taken, round_)),
            requeue_after=deadline_in(job, now),
            memory=stuck_memory(world, taken, now),
            because="the barrier waits for every node rank",
        )
    held = _held_back_until(job)
    if held is not None and now < held:
        return _held_back(job, tidy, held - now)
    if any(pod.node_rank < len(taken) and pod.alive for pod in leftovers(world, taken)):
        return starting(
            job,
            Reason.AT_BARRIER,
            "a superseded pod has not gone yet",
            Stage.RENDEZVOUS,
            actions=tidy,
            requeue_after=SOON,
            because="at most one pod per node rank may run",
        )
    return _open(job, len(taken), now)


def _held_back(job: TrainingJob, tidy: tuple[Action, ...], left: timedelta) -> Outcome:
    rate = hold(job)
    if rate is not None and rate.delay >= delay_before(job.status):
        message = f"{rate.why}; next start in {left.total_seconds():.0f} s"
        new = job.status.reason != Reason.RESTART_RATE
        return replace(
            starting(
                job,
                Reason.RESTART_RATE,
                message,
                Stage.DECISION,
                actions=tidy,
                requeue_after=left,
                because="too many free restarts to be chance: the assumption is broken, not the job",
            ),
            notes=(Note(Reason.RESTART_RATE, message, Level.WARNING),) if new else (),
        )
    count = job.status.same_point.count if job.status.same_point else 0
    return starting(
        job,
        Reason.BACKING_OFF,
        f"the same failure {count} times: next start in {left.total_seconds():.0f} s",
        Stage.DECISION,
        actions=tidy,
        requeue_after=left,
        because="back-off between identical failures",
    )


def _open(job: TrainingJob, size: int, now: datetime) -> Outcome:
    status = job.status
    return replace(
        starting(
            job,
            Reason.RELEASED,
            f"all {size} nodes are at the barrier",
            Stage.START,
            because="intent first: the release is written before any rank starts",
        ),
        changes={"released_round": status.round, "start_time": status.start_time or now},
        intent=True,
    )


def _held_back_until(job: TrainingJob) -> datetime | None:
    status = job.status
    if not status.incidents or status.incidents[-1].resolved_time is not None:
        return None
    began = status.incidents[-1].start_time
    rate = hold(job)
    delay = max(delay_before(status), rate.delay if rate is not None else timedelta(0))
    return began + delay if began is not None else None


def _run(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], tidy: tuple[Action, ...], now: datetime
) -> Outcome:
    """The barrier is released: whoever still stands at it gets the release word for word."""
    round_ = job.status.round
    held = [s.agent.release for s in taken if s.agent and s.agent.release and s.agent.release.round == round_]
    common = {(r.master_addr, r.master_port, r.num_nodes, r.nproc) for r in held}
    if len(common) > 1:
        return new_round(job, Reason.RELEASES_DIFFER, f"two releases of round {round_} are held", {})
    tidy = (*tidy, *_releases(world, job, taken, held), *unadvised(job, taken))
    behind = [s for s in taken if not (s.at(AgentState.RUNNING, round_) or finished_with_zero(s, round_))]
    if not behind:
        return _running(tidy, Stage.PRODUCTIVE, f"all ranks of {len(taken)} nodes run", "nothing is missing")
    if _only_unheard(world, job, behind, now):
        message = f"{len(behind)} of {len(taken)} agents are on their way to a new leader; their ranks run on"
        stage = job.status.ledger.stage or Stage.PRODUCTIVE
        return replace(_running(tidy, stage, message, "a change of leaders stops no rank"), unheard=True)
    if step_without_a_word(world, behind, now):
        message = f"{len(behind)} of {len(taken)} agents are not heard; steps are made all the same"
        return _running(tidy, Stage.PRODUCTIVE, message, "a step needs all ranks: theirs run")
    message = f"{len(taken) - len(behind)} of {len(taken)} nodes run their ranks"
    lost = [s for s in behind if s.pod is not None and s.agent is not None and not s.agent.connected]
    ours = hear(world, taken, now).held() if lost else ""
    if lost and lost[0].pod is not None:
        message += f"; the agent of {lost[0].pod.name} is not heard{found_about(lost[0].agent)}{ours}"
    waiting = starting(
        job,
        Reason.NODES_STARTING,
        message,
        Stage.DETECTION if lost else Stage.START,
        actions=(*tidy, *joins(taken, round_)),
        requeue_after=SOON,
        because="released; not every agent has started its ranks",
    )
    return replace(waiting, unheard=bool(ours))


def _running(actions: tuple[Action, ...], stage: Stage, message: str, because: str) -> Outcome:
    return Outcome(
        Phase.RUNNING,
        Reason.ALL_RANKS_RUNNING,
        message,
        stage,
        conditions=((ConditionType.RUNNING, True, Reason.ALL_RANKS_RUNNING, ""),),
        actions=actions,
        requeue_after=SOON,
        because=because,
    )


def _only_unheard(world: World, job: TrainingJob, behind: list[Seat], now: datetime) -> bool:
    """Whether all that is missing is word from agents that a former leader saw running."""
    return (
        job.status.is_true(ConditionType.RUNNING)
        and just_took_over(world, now)
        and all(s.filled and s.agent is None for s in behind)
    )


def _releases(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], held: list[Release]
) -> tuple[Action, ...]:
    round_ = job.status.round
    waiting = [s for s in taken if s.at(AgentState.READY, round_)]
    model = held[0] if held else _release(world, job, taken)
    if not waiting or model is None:
        return ()
    told = {s.pod.uid: replace(model, node_rank=s.node_rank) for s in waiting if s.pod is not None}
    return (OrderRun(told, round_),)


def _release(world: World, job: TrainingJob, taken: tuple[Seat, ...]) -> Release | None:
    """A first release of the round; None while an agent that may hold one has not been heard."""
    first, status = taken[0].agent, job.status
    if first is None or first.port == 0:
        return None
    if any(seat.agent is None or seat.agent.round != status.round for seat in taken):
        return None
    nproc = num_proc(job.spec, job.spec.template, world.accelerators)
    if isinstance(nproc, str):
        return None
    # A later round must never begin below what is known to be committed.
    floor = status.last_checkpoint.step if status.last_checkpoint is not None else 0
    interval = status.checkpoint_interval_seconds or 0
    return Release(status.round, 0, len(taken), nproc, first.address, first.port, floor, interval)
