"""What the cluster says against devices and nodes: it interrupts nobody, and explains what fails there."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import IncidentClass
from rerail_operator.core.evidence import find_faults
from rerail_operator.core.gang import seats

from .builders import Scene, after, running
from .test_correction import becomes, closed, killed_rank, lost_container
from .test_faults import decided
from .test_restarts import after_failures, rules
from .test_spares import HELD, lost, repaired, spare_agent, spare_pod
from .test_standstill import READING, WAITING, answered, at, place
from .wants import Want, check

K = IncidentClass
GPU_7 = "nvidia.com/gpu GPU-7"
XID = "GpuUnhealthy (XidError)"
BY_KUBELET = f"the kubelet says that {GPU_7} of gpt-c0ffe-1-1 is unhealthy"
BY_CONDITION = f"node n1 has the condition {XID}"


def sick(scene: Scene, rank: int = 1) -> Scene:
    """The kubelet calls a device of that pod unhealthy."""
    return scene.pod(rank, bad_device=GPU_7)


def troubled(scene: Scene, node: str = "n1") -> Scene:
    return scene.node(node, trouble=XID)


def device(says: str, kind: IncidentClass = K.GPU_FAULT, **more: object) -> Want:
    """One free restart that leaves node n1 for half an hour."""
    status = {"incidents.-1.class_": kind, "incidents.-1.charged": False, "incidents.-1.node": "n1",
              "restarts.total": 1, "restarts.charged": 0, "excluded_nodes.0.name": "n1"}  # fmt: skip
    found = {name.replace("__", "."): value for name, value in more.items()}
    return Want("Restarting", intent=True, round=2, says=says, status={**status, **found})


def plainly(kind: IncidentClass, **more: object) -> Want:
    found = {name.replace("__", "."): value for name, value in more.items()}
    status = {"incidents.-1.class_": kind, "excluded_nodes": (), **found}
    return Want("Restarting", intent=True, round=2, status=status)


def ended(reason: str, *, code: int) -> Want:
    return Want(
        reason, intent=True, phase="Failed", status={"incidents.-1.exit_code": code, "excluded_nodes": ()}
    )


HANGS = answered(at(46), (0, place(0, 1, **WAITING)), (1, place(2, **WAITING)), (1, place(3, **READING)))

ANSWERS: dict[str, tuple[Scene, Want]] = {
    "a device that is called bad interrupts nobody": (
        sick(running()), Want("AllRanksRunning", phase="Running", status={"incidents": (), "round": 1})),
    "nor does a condition of the node": (
        troubled(running()), Want("AllRanksRunning", phase="Running", status={"incidents": (), "round": 1})),
    "a signal on a bad device is a GPU fault that says both": (
        decided(sick(running().exits(1, signal=7))),
        device(f"rank 1 was killed by signal 7 on n1; {BY_KUBELET}; GpuFault, free",
               incidents__0__fingerprint="GpuFault/device/SIGBUS", incidents__0__signal="SIGBUS",
               excluded_nodes__0__until=after(1805))),
    "without it it is the process' own": (decided(running().exits(1, signal=7)), plainly(K.PROCESS_FAULT)),
    "on another pod it explains nothing": (decided(sick(running().exits(1, signal=7), rank=0)), plainly(K.PROCESS_FAULT)),
    "a condition of its node explains it as well": (
        decided(troubled(running().exits(1, code=1))),
        device(f"rank 1 exited with code 1 on n1; {BY_CONDITION}", incidents__0__exit_code=1)),
    "where both speak both are told": (
        decided(troubled(sick(running().exits(1, code=1)))), device(f"{BY_KUBELET}, and {BY_CONDITION}")),
    "a container that ended without a word": (
        decided(sick(running().container(1, 137))), device(BY_KUBELET, incidents__0__fingerprint="GpuFault/device/137")),
    "processes that cannot be stopped": (decided(sick(running().agent(1, state=AgentState.STUCK))), device(BY_KUBELET)),
    "NaN that the program tells": (decided(sick(running().exits(1, code=82, contract=True))), device(BY_KUBELET)),
    "a hang that is blamed on it": (
        sick(HANGS), device(f"never entered the collective that 3 others wait in (gloo:all_reduce number 41 of group 0); {BY_KUBELET}")),
    "a hang that is blamed on another": (sick(HANGS, rank=0), plainly(K.HANG)),
    "of ranks that fail together the one on the bad device is the root": (
        decided(sick(running().exits(0, code=1).exits(1, code=1, at=0.9))), device(BY_KUBELET, incidents__0__node_rank=1)),
    "a preemption stays one": (
        decided(sick(running().pod(1, disruption="PreemptionByScheduler").exits(1, signal=9)).later(120)),
        plainly(K.PREEMPTION)),
    "full memory stays full memory": (decided(sick(running().container(1, 137, "OOMKilled"))), plainly(K.OUT_OF_MEMORY)),
    "a bad shard stays a bad shard": (decided(sick(running().exits(1, code=83, contract=True))), plainly(K.BAD_DATA)),
    "a user's error stays a user's error": (
        decided(sick(running().exits(1, code=64, contract=True))), ended("UserError", code=64)),
    "a user's rule about the code keeps its say": (
        decided(sick(running().policy(**rules(("mine", "In", [3], "FailJob"))).exits(1, code=3))), ended("UserRule", code=3)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ANSWERS)
def test_the_word_of_the_cluster(sentence: str) -> None:
    check(*ANSWERS[sentence])


def test_word_that_comes_while_others_may_still_report_does_not_begin_the_wait_anew() -> None:
    scene = running().container(1, 137).written().later(0.6)
    (before,), (joined,) = (
        find_faults(world, seats(world, 2), scene.now) for world in (scene.world(), sick(scene).world())
    )
    assert (joined.kind, joined.at, joined.key) == (K.GPU_FAULT, before.at, before.key)
    assert joined.at < scene.now


def test_the_seconds_of_a_hang_on_a_bad_device_are_detection_too() -> None:
    stages = [scene.written().job.status.ledger.lost_seconds for scene in (HANGS, sick(HANGS))]
    assert stages[0] == stages[1] and stages[0]


def test_a_job_that_fails_at_one_step_on_one_bad_device_after_another_is_ended() -> None:
    scene = sick(after_failures(2, mark="GpuFault/device/SIGSEGV").exits(1, signal=11))
    check(decided(scene), Want("RepeatedFailure", intent=True, phase="Failed", says="third time"))


# -- known later


LATER: dict[str, tuple[Scene, str]] = {
    "the kubelet after a rank was killed": (
        sick(killed_rank()), f"incident 1 was GpuFault, free, not ProcessFault: {BY_KUBELET}"),
    "a condition after the container was lost": (
        troubled(lost_container()), f"incident 1 was GpuFault, free, not ContainerLoss: {BY_CONDITION}"),
    "also where the same pod goes on": (
        sick(killed_rank().status(released_round=2)), f"incident 1 was GpuFault, free, not ProcessFault: {BY_KUBELET}"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", LATER)
def test_a_device_that_is_called_bad_later_corrects_the_incident(sentence: str) -> None:
    scene, says = LATER[sentence]
    plan = scene.plan()
    assert plan.status is not None and plan.status.round == 2
    assert [n.message for n in plan.notes if n.reason == "Corrected"] == [says]
    want, _ = becomes(K.GPU_FAULT, 0, says)
    for path in ("restarts.total", "restarts.charged"):
        assert getattr(plan.status.restarts, path.split(".")[1]) == want.status[path]
    last = plan.status.incidents[-1]
    assert last.class_ is K.GPU_FAULT and last.fingerprint.startswith("GpuFault/device/")
    assert [node.name for node in plan.status.excluded_nodes] == ["n1"]
    assert "Corrected" not in [note.reason for note in scene.written().plan().notes]


def of_class(kind: IncidentClass) -> Scene:
    scene = killed_rank()
    return scene.status(incidents=(scene.job.status.incidents[-1].model_copy(update={"class_": kind}),))


STAYS: dict[str, Scene] = {
    "two minutes later": sick(killed_rank().later(121)),
    "an incident that has closed": sick(closed(killed_rank())),
    "a device of another pod": sick(killed_rank(), rank=0),
    "a user's error": sick(of_class(K.USER_ERROR)),
    "a drain": sick(of_class(K.DRAIN)),
    "a lost node": sick(of_class(K.NODE_LOSS)),
    "a silence": sick(of_class(K.NETWORK)),
}


@pytest.mark.parametrize("sentence", STAYS)
def test_what_a_bad_device_does_not_correct(sentence: str) -> None:
    plan = STAYS[sentence].plan()
    assert "Corrected" not in [note.reason for note in plan.notes]


# -- spares


SPARES: dict[str, tuple[Scene, Want]] = {
    "a spare with a bad device goes, and the gang runs on": (
        spare_pod(HELD, bad_device=GPU_7), Want("AllRanksRunning", ("delete p1-2",), status={"incidents": ()})),
    "a spare on a node in trouble goes": (troubled(HELD, "n2"), Want("AllRanksRunning", ("delete p1-2",))),
    "a spare with a bad device takes no node rank": (
        spare_pod(lost(repaired(HELD), 1), bad_device=GPU_7).node("n3"),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n3 in round 2", "delete p1-2"))),
    "a pod that has to be made anew is not made on a node in trouble": (
        troubled(spare_agent(repaired(HELD).container(1, 137), connected=False)).node("n3"),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n3 in round 2"))),
}  # fmt: skip


@pytest.mark.parametrize("sentence", SPARES)
def test_where_the_cluster_speaks_against_it_nothing_is_placed(sentence: str) -> None:
    check(*SPARES[sentence])
