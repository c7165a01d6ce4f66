"""Standing in line and standing aside: admission, suspension, and giving nodes back."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from rerail_api.status import ConditionType, Phase, Stage
from rerail_api.v1alpha1 import TrainingJob

from .closing import left_open
from .conditions import stop_is_ordered
from .gang import may_still_run
from .names import revision_name, template_hash
from .outcome import Outcome
from .placement import taken_all_the_same
from .plan import DeleteGang, DryRunPod, Level, Note
from .reasons import Reason
from .template_facts import checkpoint_is_durable, num_proc
from .template_shape import unreadable
from .world import Placement, Refusal, Rejection, World

KUEUE_LABEL = "kueue.x-k8s.io/queue-name"
NAME_TAKEN = "NameTaken"
"""The action of a rejection that speaks of a name, not of the template."""
CREATE_SPARE = "CreateSpare"
"""The action of a rejection that speaks of a spare: the gang does without."""
LOOK_AGAIN = timedelta(seconds=30)
SETTLING = timedelta(seconds=1)
NEEDS_A_PERSON = frozenset({Reason.NEVER_FITS, Reason.INVALID_SPEC, Reason.KUEUE_NOT_SUPPORTED})
RETRY_QUOTA = timedelta(seconds=15)
RETRY_TEMPLATE = timedelta(seconds=60)


def shape_hash(job: TrainingJob) -> str:
    """Hash of all that may change only while suspended: template, size, launcher."""
    spec = job.spec
    return template_hash(
        {
            "template": spec.template,
            "numNodes": spec.num_nodes,
            "numProcPerNode": spec.num_proc_per_node,
            "launcher": spec.launcher.value,
        }
    )


def why_invalid(world: World, job: TrainingJob) -> str:
    """What keeps this spec from ever running, beyond what schema and CEL can say; empty when nothing does."""
    misfit = unreadable(job.spec.template)
    if misfit:
        return misfit
    found = num_proc(job.spec, job.spec.template, world.accelerators)
    return found if isinstance(found, str) else ""


def queue(world: World, job: TrainingJob, now: datetime) -> Outcome:
    """The job holds no nodes: it is admitted whole, or told in numbers why not."""
    if KUEUE_LABEL in job.metadata.labels:
        return _held(
            job,
            Reason.KUEUE_NOT_SUPPORTED,
            f"label {KUEUE_LABEL} is set, and this version cannot gate on Kueue: remove the label",
        )
    invalid = why_invalid(world, job)
    if invalid:
        return _held(job, Reason.INVALID_SPEC, invalid)
    if may_still_run(world):
        return _clear_old_pods(world)
    refused = fresh_rejection(world.rejections, now)
    if refused is not None:
        return _rejected(job, refused, now)
    offer = world.offer
    if offer is None:
        return _held(job, Reason.CLUSTER_SETTLING, "the cluster's nodes and running jobs are being counted")
    if isinstance(offer, Refusal):
        return _held(job, Reason(offer.reason), offer.message)
    if not world.dry_run_passed:
        first = offer.nodes[min(offer.nodes)]
        return Outcome(
            Phase.QUEUED,
            Reason.PLACING_PODS,
            "a place is there; the pod is being tried on the API server",
            Stage.PLACEMENT,
            actions=(DryRunPod(first),),
            requeue_after=timedelta(seconds=1),
            because="strict dry run before the first pod",
        )
    return _admit(world, job, offer, now)


def _held(job: TrainingJob, reason: Reason, message: str) -> Outcome:
    before = job.status.condition(ConditionType.ADMITTED)
    news = before is None or before.reason != reason.value
    level = Level.WARNING if reason in NEEDS_A_PERSON else Level.NORMAL
    return Outcome(
        Phase.QUEUED,
        reason,
        message,
        Stage.QUEUED,
        conditions=((ConditionType.ADMITTED, False, reason, message),),
        notes=(Note(reason, message, level),) if news else (),
        requeue_after=SETTLING if reason is Reason.CLUSTER_SETTLING else LOOK_AGAIN,
        because="the gang has no place now",
    )


def _clear_old_pods(world: World) -> Outcome:
    left = may_still_run(world)
    message = f"{len(left)} pods of an earlier round have not gone yet"
    doomed = any(not pod.deleting for pod in left)
    return Outcome(
        Phase.QUEUED,
        Reason.WAITING_FOR_OLD_PODS,
        message,
        Stage.STOP,
        conditions=((ConditionType.ADMITTED, False, Reason.WAITING_FOR_OLD_PODS, message),),
        actions=(DeleteGang(),) if doomed else (),
        requeue_after=timedelta(seconds=5),
        because="an earlier gang must be gone before a new one is placed",
    )


def fresh_rejection(rejections: Iterable[Rejection], now: datetime) -> Rejection | None:
    """The server's no to the job's objects, until it is time to ask again."""
    for rejection in rejections:
        if rejection.action in (NAME_TAKEN, CREATE_SPARE):
            continue
        if now < rejection.at + (RETRY_QUOTA if rejection.retriable else RETRY_TEMPLATE):
            return rejection
    return None


def _rejected(job: TrainingJob, rejection: Rejection, now: datetime) -> Outcome:
    reason = Reason.QUOTA_EXCEEDED if rejection.retriable else Reason.TEMPLATE_REJECTED
    wait = RETRY_QUOTA if rejection.retriable else RETRY_TEMPLATE
    message = f"the API server refuses the job's objects: {rejection.message}"
    told = job.status.reason == reason and job.status.message == message
    return Outcome(
        Phase.QUEUED,
        reason,
        message,
        Stage.QUEUED,
        conditions=((ConditionType.ADMITTED, False, reason, message),),
        notes=() if told else (Note(reason, message, Level.WARNING),),
        requeue_after=max(rejection.at + wait - now, timedelta(seconds=1)),
        because="nothing is claimed while the server refuses the template",
    )


def _admit(world: World, job: TrainingJob, offer: Placement, now: datetime) -> Outcome:
    status = job.status
    shape = shape_hash(job)
    where = ", ".join(list(offer.nodes.values())[:4]) + (", ..." if len(offer.nodes) > 4 else "")
    message = f"{len(offer.nodes)} nodes: {where}{taken_all_the_same(world.nodes, offer.nodes.values())}"
    durable, sentence = checkpoint_is_durable(job.spec.template, job.spec.checkpoint.path)
    why = Reason.VOLUME_IS_DURABLE if durable else Reason.VOLUME_IS_NOT_DURABLE
    notes = [Note(Reason.ADMITTED, f"round {status.round + 1}: {message}")]
    if not durable:
        notes.append(Note(why, sentence, Level.WARNING))
    return Outcome(
        Phase.STARTING,
        Reason.ADMITTED,
        message,
        Stage.PLACEMENT,
        changes={
            "round": status.round + 1,
            "admitted_time": now,
            "template_hash": shape,
            "template_revision": revision_name(job.metadata.name, job.metadata.uid, shape),
        },
        conditions=(
            (ConditionType.ADMITTED, True, Reason.ADMITTED, message),
            (ConditionType.SUSPENDED, False, Reason.NOT_SUSPENDED, ""),
            (ConditionType.CHECKPOINT_DURABLE, durable, why, sentence),
        ),
        notes=tuple(notes),
        intent=True,
        placement=offer,
        because="the whole gang has a place: claim it and open a round",
    )


def suspend(world: World, job: TrainingJob, now: datetime) -> Outcome:
    """Save, stop, give everything back. The intent comes first: a stop by order is never a failure.

    An open incident ends with it: what passes until people let the job go on is not its cost.
    """
    status = job.status
    left = may_still_run(world)
    if status.is_true(ConditionType.ADMITTED) or not stop_is_ordered(status):
        return _order_stop(left_open(status.incidents, now), runs=bool(left))
    if left:
        message = f"{len(left)} pods are saving and stopping"
        return Outcome(
            Phase.SUSPENDED,
            Reason.SUSPENDING,
            message,
            Stage.STOP,
            conditions=((ConditionType.SUSPENDED, False, Reason.SUSPENDING, message),),
            actions=(DeleteGang(),) if any(not pod.deleting for pod in left) else (),
            requeue_after=timedelta(seconds=5),
            because="pods get SIGTERM, their grace, and are gone",
        )
    return Outcome(
        Phase.SUSPENDED,
        Reason.SUSPENDED,
        "holds no nodes",
        Stage.SUSPENDED,
        conditions=((ConditionType.SUSPENDED, True, Reason.SUSPENDED, "holds no nodes"),),
        actions=(DeleteGang(),) if any(not pod.deleting for pod in world.pods) else (),
        because="spec.suspend is true and no pod is left",
    )


def _order_stop(closing: Mapping[str, object], runs: bool) -> Outcome:
    message = "asked to save and stop" if runs else "holds no nodes"
    reason = Reason.SUSPENDING if runs else Reason.SUSPENDED
    return Outcome(
        Phase.SUSPENDED,
        reason,
        message,
        Stage.STOP if runs else Stage.SUSPENDED,
        changes={"start_time": None, **closing},  # what counts against activeDeadlineSeconds begins anew
        conditions=(
            (ConditionType.SUSPENDED, not runs, reason, message),
            (ConditionType.ADMITTED, False, Reason.SUSPENDED, "the job is suspended"),
        ),
        notes=(Note(reason, message),),
        intent=True,
        because="spec.suspend is true",
    )


def give_back(reason: Reason, message: str) -> Outcome:
    """Return every node and stand in line again: no half gang is ever held."""
    return Outcome(
        Phase.QUEUED,
        reason,
        message,
        Stage.STOP,
        conditions=((ConditionType.ADMITTED, False, reason, message),),
        notes=(Note(reason, message, Level.WARNING),),
        intent=True,
        because="a gang that cannot be completed gives everything back",
    )
