"""The end of a job, and what is left to do after it. A finished job never runs again."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from rerail_api.status import MAX_INCIDENTS, ConditionType, Incident, Phase, Stage
from rerail_api.v1alpha1 import TrainingJob

from .closing import left_open
from .gang import may_still_run
from .outcome import Outcome
from .plan import Action, DeleteGang, DeleteJob, DeletePod, Level, Note, OrderFinish, Plan
from .reasons import Reason
from .world import Agent, Pod, World

FINISH_PATIENCE = timedelta(seconds=15)
"""How long an agent may take to obey `finish` before its pod is deleted."""


def completed(job: TrainingJob, now: datetime) -> Outcome:
    """Every rank of every node of the current round ended with 0."""
    message = f"all ranks of {job.spec.num_nodes} nodes ended with 0"
    return Outcome(
        Phase.COMPLETE,
        Reason.COMPLETED,
        message,
        Stage.STOP,
        changes={"completion_time": now, **left_open(job.status.incidents, now)},
        conditions=(
            (ConditionType.RUNNING, False, Reason.COMPLETED, message),
            (ConditionType.COMPLETE, True, Reason.COMPLETED, message),
        ),
        notes=(Note(Reason.COMPLETED, message),),
        intent=True,
        because="written before the agents are released: a pod that ends is no failure then",
    )


def failed(
    job: TrainingJob, reason: Reason, message: str, now: datetime, *, incident: Incident | None = None
) -> Outcome:
    """The job ends without success, with its evidence."""
    changes: dict[str, object] = {"completion_time": now}
    if incident is not None:
        ended = incident.model_copy(update={"resolved_time": now})
        changes["incidents"] = with_incident(job.status.incidents, ended)
        message = _with_evidence(message, incident)
    else:
        changes.update(left_open(job.status.incidents, now))
    return Outcome(
        Phase.FAILED,
        reason,
        message,
        Stage.STOP,
        changes=changes,
        conditions=(
            (ConditionType.RUNNING, False, reason, message),
            (ConditionType.FAILED, True, reason, message),
        ),
        notes=(Note(reason, message, Level.WARNING),),
        intent=True,
        fault_at=incident.start_time if incident is not None else None,
        because="no rung is left",
    )


def _with_evidence(message: str, incident: Incident) -> str:
    """The sentence with the last lines of the failing rank: `kubectl describe` shows the traceback."""
    if not incident.log_lines:
        return message
    return message + "\n" + "\n".join(incident.log_lines)[-700:]


def with_incident(before: tuple[Incident, ...], new: Incident) -> tuple[Incident, ...]:
    """The last 16 incidents; log lines stay in the newest only."""
    older = [i.model_copy(update={"log_lines": ()}) if i.log_lines else i for i in before]
    if older and older[-1].resolved_time is None:
        # Superseded: nothing more will be booked to it.
        known = [at for at in (older[-1].start_time, new.start_time) if at is not None]
        older[-1] = older[-1].model_copy(update={"resolved_time": max(known, default=None)})
    return tuple([*older, new][-MAX_INCIDENTS:])


def after_the_end(world: World, job: TrainingJob, now: datetime) -> Plan:
    """Stop what still runs, keep what explains the end, delete the job when its time has come."""
    status = job.status
    ended = status.completion_time or now
    success = status.is_true(ConditionType.COMPLETE)
    actions: list[Action] = []
    ttl = job.spec.ttl_seconds_after_finished
    waits: list[timedelta] = []
    if ttl is not None:
        left = ended + timedelta(seconds=ttl) - now
        if left <= timedelta(0):
            return Plan(None, (DeleteJob(),), because="ttlSecondsAfterFinished has passed")
        waits.append(left)
    spares = sorted((p for p in world.pods if p.spare and not p.deleting), key=lambda pod: pod.name)
    actions.extend(DeletePod(p.name, p.uid, why="a finished job holds no spares") for p in spares)
    running = [pod for pod in may_still_run(world) if not pod.deleting and not pod.spare]
    if running:
        actions.extend(_stop(world, job, running, success, now - ended))
        waits.append(timedelta(seconds=2))
    kept = _kept(job)
    if not success:
        actions.extend(
            DeletePod(pod.name, pod.uid, why="the job has failed; other pods hold its evidence")
            for pod in sorted(world.pods, key=lambda pod: pod.name)
            if pod.ended and not pod.deleting and not pod.spare and pod.node_rank not in kept
        )
    return Plan(
        None,
        tuple(actions),
        requeue_after=min(waits) if waits else None,
        because="the job is finished: it never runs again",
    )


def _kept(job: TrainingJob) -> frozenset[int]:
    """Node ranks whose pods stay, ended, so that their logs can be read: the first failing one and 0."""
    kept = {0}
    if job.status.incidents and job.status.incidents[-1].node_rank is not None:
        kept.add(job.status.incidents[-1].node_rank)
    return frozenset(kept)


def _stop(
    world: World, job: TrainingJob, running: list[Pod], success: bool, since: timedelta
) -> list[Action]:
    if since > FINISH_PATIENCE:
        return [DeletePod(pod.name, pod.uid, grace_seconds=5, why="the job is finished") for pod in running]
    reachable = _reachable(world.agents, running)
    actions: list[Action] = []
    if reachable:
        reason = "complete" if success else "failed"
        actions.append(OrderFinish(reachable, 0 if success else _code(job), f"the job is {reason}"))
    if not success:
        # The pods whose logs are to stay get their time: their agents may be on the way to a new leader.
        doomed = [p for p in running if p.uid not in reachable and p.node_rank not in _kept(job)]
        actions.extend(DeletePod(p.name, p.uid, why="the job has failed") for p in doomed)
    return actions


def _reachable(agents: Mapping[str, Agent], running: list[Pod]) -> tuple[str, ...]:
    return tuple(p.uid for p in running if (a := agents.get(p.uid)) is not None and a.connected)


def _code(job: TrainingJob) -> int:
    """With what the agents of a failed job end: the root's exit code, 1 when there is none."""
    last = job.status.incidents[-1] if job.status.incidents else None
    if last is not None and last.exit_code:
        return last.exit_code if 0 < last.exit_code < 256 else 1
    return 1


def tear_down(world: World) -> Plan:
    """The object is gone: its pods go too, by job UID, and nothing is created."""
    left = [pod for pod in world.pods if not pod.deleting]
    return Plan(
        None,
        (DeleteGang(),) if left else (),
        requeue_after=timedelta(seconds=5) if left else None,
        because="the TrainingJob is gone: tear down by its UID",
    )
