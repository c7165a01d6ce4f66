"""From applied to admitted, suspended and resumed: sentences about jobs that hold no nodes."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType
from rerail_operator.core.plan import Placement
from rerail_operator.core.world import PodPhase

from .builders import Scene, a_pod, admitted, after, at_barrier, fresh, placed, running
from .wants import Want, check

SUSPENDED = {"suspend": True}


def suspended(scene: Scene) -> Scene:
    """The intent to suspend is written."""
    return scene.spec(suspend=True).written()


def without_pods(scene: Scene) -> Scene:
    for rank in sorted({pod.node_rank for pod in scene.pods}):
        scene = scene.gone(rank)
    return scene


CASES: dict[str, tuple[Scene, Want]] = {
    "a job that the queue has not looked at yet waits": (
        fresh(),
        Want("ClusterSettling", phase="Queued", true=(), within=30),
    ),
    "a refusal is passed on with its reason and its numbers": (
        fresh().refused("InsufficientNodes", "needs 2 nodes with 8 free nvidia.com/gpu; 1 fits"),
        Want("InsufficientNodes", phase="Queued", says="1 fits", round=0),
    ),
    "a gang that no node could ever hold is told so": (
        fresh().refused("NeverFits", "3 nodes could ever hold such a pod"),
        Want("NeverFits", phase="Queued"),
    ),
    "before the first pod the template goes through a dry run": (
        fresh().offered("n0", "n1"),
        Want("PlacingPods", ("dry run on n0",), phase="Queued", true=(), within=1),
    ),
    "a place for all is claimed by intent, with a round, before anything is done": (
        fresh().offered("n0", "n1").see(dry_run_passed=True),
        Want(
            "Admitted",
            intent=True,
            phase="Starting",
            round=1,
            true=("Admitted",),
            within=0,
            status={"admitted_time": after(0), "restarts.total": 0, "start_time": None},
        ),
    ),
    "a place with an avoided node says that there was no other": (
        fresh()
        .offered("n0", "n1")
        .see(dry_run_passed=True)
        .node("n0", struck="3 strikes in 7 days")
        .node("n1", struck="4 strikes in 7 days"),
        Want(
            "Admitted",
            intent=True,
            round=1,
            says="2 nodes: n0, n1; for want of others with n0 (3 strikes in 7 days) and 1 more",
        ),
    ),
    "a refused template holds the job in line with the server's words": (
        fresh().offered("n0", "n1").rejected("DryRun", 'unknown field "spec.containers[0].resource"'),
        Want(
            "TemplateRejected", phase="Queued", says='unknown field "spec.containers[0].resource"', within=60
        ),
    ),
    "a refused template is tried again after a minute": (
        fresh().offered("n0", "n1").rejected("DryRun", "no").later(60),
        Want("PlacingPods", ("dry run on n0",), phase="Queued"),
    ),
    "a quota is tried again after a quarter of a minute": (
        fresh().offered("n0", "n1").rejected("CreatePod", "exceeded quota", retriable=True).later(14),
        Want("QuotaExceeded", phase="Queued", says="exceeded quota", within=1),
    ),
    "a name that was taken says nothing against the template": (
        fresh().offered("n0", "n1").rejected("NameTaken", "exists", pod_name="gpt-c0ffe-1-0"),
        Want("PlacingPods", ("dry run on n0",)),
    ),
    "several kinds of accelerators under auto are refused with what to write": (
        fresh()
        .spec(num_proc_per_node="auto")
        .see(accelerators=("nvidia.com/gpu", "amd.com/gpu"))
        .spec(
            template={
                "spec": {
                    "containers": [
                        {
                            "name": "trainer",
                            "command": ["a"],
                            "resources": {"limits": {"nvidia.com/gpu": 1, "amd.com/gpu": 1}},
                        }
                    ]
                }
            }
        ),
        Want("InvalidSpec", phase="Queued", says="set spec.numProcPerNode to a number"),
    ),
    "a job with Kueue's label is held": (
        fresh().metadata(labels={"kueue.x-k8s.io/queue-name": "a"}).offered("n0", "n1"),
        Want("KueueNotSupported", phase="Queued", says="remove the label"),
    ),
    "pods of an earlier gang are cleared before a place is taken": (
        placed().condition(ConditionType.ADMITTED, False, "GaveBack").offered("n0", "n1"),
        Want("WaitingForOldPods", ("delete the gang",), phase="Queued", says="2 pods"),
    ),
    "pods that are on their way out are only waited for": (
        placed()
        .condition(ConditionType.ADMITTED, False, "GaveBack")
        .pod(0, deleting=True)
        .pod(1, deleting=True),
        Want("WaitingForOldPods", phase="Queued", within=5),
    ),
    "an ended pod of an earlier gang keeps nobody waiting": (
        placed()
        .condition(ConditionType.ADMITTED, False, "GaveBack")
        .container(0, 1)
        .container(1, 1)
        .refused("InsufficientNodes", "full"),
        Want("InsufficientNodes"),
    ),
    "a pod on a node that is gone keeps nobody waiting": (
        placed()
        .condition(ConditionType.ADMITTED, False, "GaveBack")
        .without_node("n0")
        .without_node("n1")
        .refused("InsufficientNodes", "full"),
        Want("InsufficientNodes"),
    ),
    # -- suspend
    "a job applied suspended never stands in line": (
        fresh(**SUSPENDED).offered("n0", "n1"),
        Want("Suspended", intent=True, phase="Suspended", round=0, true=("Suspended",)),
    ),
    "suspending a running job is written before any pod is touched": (
        running().spec(suspend=True),
        Want("Suspending", intent=True, phase="Suspended", round=1),
    ),
    "then its pods are told to save and stop with their own grace": (
        suspended(running()),
        Want("Suspending", ("delete the gang",), phase="Suspended", says="2 pods are saving"),
    ),
    "a suspended job waits for pods that are saving": (
        suspended(running()).pod(0, deleting=True).pod(1, deleting=True),
        Want("Suspending", phase="Suspended"),
    ),
    "suspended when no pod is left": (
        without_pods(suspended(running())),
        Want("Suspended", phase="Suspended", true=("Suspended",)),
    ),
    "suspending a job whose pods were just created takes them back": (
        suspended(placed()),
        Want("Suspending", ("delete the gang",), phase="Suspended"),
    ),
    "suspending a job at the barrier takes its pods back": (
        suspended(at_barrier()),
        Want("Suspending", ("delete the gang",), phase="Suspended"),
    ),
    "suspending a job that waits in line is just said": (
        suspended(fresh().offered("n0", "n1")),
        Want("Suspended", phase="Suspended", true=("Suspended",)),
    ),
    "suspending in mid-repair keeps the open incident out of the way": (
        suspended(running().exits(1, code=1).later(1).written()),
        Want("Suspending", ("delete the gang",), phase="Suspended", round=2),
    ),
    "ranks that end by the order to stop are no failure": (
        suspended(running()).pod(0, deleting=True).exits(0, code=75, ordered=True),
        Want("Suspending", ("delete the gang",), phase="Suspended", status={"restarts.total": 0}),
    ),
    "a gang that is done when it is suspended is done": (
        running().all(state=AgentState.DONE).spec(suspend=True),
        Want("Completed", intent=True, phase="Complete"),
    ),
    # -- resume
    "a resumed job stands in line and is no longer called suspended": (
        without_pods(suspended(running())).written().spec(suspend=False).refused("InsufficientNodes", "full"),
        Want("InsufficientNodes", phase="Queued", true=()),
    ),
    "a resumed job gets a new round and keeps its counts": (
        without_pods(suspended(running()))
        .written()
        .spec(suspend=False)
        .offered("n1", "n2")
        .see(dry_run_passed=True),
        Want(
            "Admitted",
            intent=True,
            round=2,
            true=("Admitted",),
            status={"restarts.total": 0, "start_time": None},
        ),
    ),
    "resumed before its pods were gone: they go first": (
        suspended(running()).spec(suspend=False).offered("n0", "n1"),
        Want("WaitingForOldPods", ("delete the gang",), phase="Queued"),
    ),
    "a spec changed while suspended starts as it is now": (
        without_pods(suspended(running()))
        .written()
        .spec(suspend=False, num_nodes=1)
        .offered("n0")
        .see(dry_run_passed=True),
        Want("Admitted", intent=True, round=2, says="1 nodes"),
    ),
    "a spec changed between two looks makes the old gang save and stop": (
        running().spec(num_nodes=3),
        Want("SpecChanged", intent=True, phase="Queued", true=()),
    ),
    "a smaller gang is not taken for done because its first ranks are": (
        running(3).agent(0, state=AgentState.DONE).agent(1, state=AgentState.DONE).spec(num_nodes=2),
        Want("SpecChanged", intent=True, phase="Queued"),
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_standing_in_line(sentence: str) -> None:
    check(*CASES[sentence])


def test_a_refusal_by_the_server_is_told_once() -> None:
    scene = fresh().rejected("DryRun", "no")
    assert [note.reason for note in scene.plan().notes] == ["TemplateRejected"]
    assert scene.written().plan().notes == ()


def test_admission_claims_what_was_offered() -> None:
    scene = fresh().offered("n2", "n0").see(dry_run_passed=True)
    assert scene.plan().placement == Placement({0: "n2", 1: "n0"})


def test_the_template_is_frozen_before_the_first_pod_and_then_all_are_created() -> None:
    scene = admitted().see(template_frozen=False)
    check(scene, Want("PlacingPods", ("freeze the template",), phase="Starting"))
    check(
        scene.see(template_frozen=True),
        Want("PlacingPods", ("create 0 on n0 in round 1", "create 1 on n1 in round 1"), phase="Starting"),
    )


def test_an_unbound_pod_holds_the_line_until_it_is_deleted() -> None:
    scene = admitted().condition(ConditionType.ADMITTED, False, "GaveBack").offered("n0", "n1")
    scene = scene.plus(a_pod(0, phase=PodPhase.PENDING, bound=False))
    check(scene, Want("WaitingForOldPods", ("delete the gang",)))
    going = scene.pod(0, deleting=True).see(dry_run_passed=True)
    check(going, Want("Admitted", intent=True))


DURABLE = {
    "no volume at the path": (None, False),
    "a volume that dies with its pod": ({"emptyDir": {}}, False),
    "a claim": ({"persistentVolumeClaim": {"claimName": "shared"}}, True),
}


@pytest.mark.parametrize("volume", DURABLE)
def test_admission_says_whether_checkpoints_outlive_their_pod(volume: str) -> None:
    source, durable = DURABLE[volume]
    trainer: dict[str, object] = {"name": "trainer", "command": ["train"]}
    spec: dict[str, object] = {"containers": [trainer]}
    if source is not None:
        trainer["volumeMounts"] = [{"name": "disk", "mountPath": "/checkpoints"}]
        spec["volumes"] = [{"name": "disk", **source}]
    scene = fresh().spec(template={"spec": spec}).offered("n0", "n1").see(dry_run_passed=True)
    plan = scene.plan()
    assert plan.status is not None and plan.status.is_true(ConditionType.CHECKPOINT_DURABLE) is durable
    warned = [note.reason for note in plan.notes if note.level == "Warning"]
    assert warned == ([] if durable else ["VolumeIsNotDurable"])
