"""An open incident follows what is learned later: class, charge and counts, and the restart stays counted once."""

from dataclasses import replace

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import IncidentClass, RestartCounts, SamePoint
from rerail_operator.core.correction import same_point
from rerail_operator.core.world import PodPhase

from .builders import Scene, after, an_incident, running
from .test_restarts import rules
from .wants import Want, check

K = IncidentClass


def restarted(scene: Scene, wait: float = 5) -> Scene:
    """The fault is answered: round 2 is written, nobody has come to its barrier."""
    scene = scene if scene.plan().intent else scene.written().later(wait)
    scene = scene.written()
    assert scene.job.status.round == 2, scene.job.status
    return scene


def lost_container() -> Scene:
    """The container of node rank 1 ended without a word."""
    return restarted(running().steps(40).container(1, 137))


def killed_rank() -> Scene:
    return restarted(running().steps(40).exits(1, signal=9))


def silent_agent() -> Scene:
    scene = running().steps(40).silent(1).later(21).agent(0, last_seen=after(21))
    return restarted(scene)


def of_memory(scene: Scene) -> Scene:
    return scene.pod(1, phase=PodPhase.FAILED, termination=replace(_ending(scene), reason="OOMKilled"))


def _ending(scene: Scene):  # type: ignore[no-untyped-def]
    return scene.container(1, 137).of(1).termination


def becomes(kind: IncidentClass, charged: int, says: str, **more: object) -> tuple[Want, str]:
    counts = {"restarts.total": 1, "restarts.charged": charged, "restarts.since_progress": charged,
              "incidents.0.charged": bool(charged), "incidents.0.class_": kind, "round": 2}  # fmt: skip
    found = {name.replace("__", "."): value for name, value in more.items()}
    return Want("PlacingPods", intent=True, round=2, status={**counts, **found}), says


CORRECTED: dict[str, tuple[Scene, tuple[Want, str]]] = {
    "the kubelet says OOMKilled after a container was lost": (
        of_memory(lost_container()),
        becomes(K.OUT_OF_MEMORY, 1, "incident 1 was OutOfMemory, charged, not ContainerLoss", same_point__fingerprint="OutOfMemory/137")),
    "the kubelet says OOMKilled after a rank was killed": (
        of_memory(killed_rank()),
        becomes(K.OUT_OF_MEMORY, 1, "incident 1 was OutOfMemory", same_point__fingerprint="OutOfMemory/SIGKILL", same_point__count=1)),
    "NotReady arrives after silence": (
        silent_agent().pod(1, deleting=True).node("n1", ready=None),
        becomes(K.NODE_LOSS, 0, "incident 1 was NodeLoss, free, not Network: node n1 is not ready", same_point=None)),
    "the node is deleted after silence": (
        silent_agent().pod(1, deleting=True).without_node("n1"), becomes(K.NODE_LOSS, 0, "node n1 is gone from the cluster")),
    "a disruption is told after the signal that it sent": (
        killed_rank().pod(1, deleting=True, disruption="PreemptionByScheduler"),
        becomes(K.PREEMPTION, 0, "incident 1 was Preemption, free, not ProcessFault", same_point=None)),
    "a drain is told after the container was lost": (
        lost_container().pod(1, disruption="EvictionByEvictionAPI"),
        becomes(K.DRAIN, 0, "incident 1 was Drain, free", excluded_nodes__0__name="n1")),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CORRECTED)
def test_what_is_known_later_counts(sentence: str) -> None:
    scene, (want, says) = CORRECTED[sentence]
    plan = scene.plan()
    assert plan.status is not None and plan.intent and not plan.actions
    told = [note.message for note in plan.notes if note.reason == "Corrected"]
    assert len(told) == 1 and says in told[0], told
    check(scene, want)


@pytest.mark.parametrize("sentence", CORRECTED)
def test_it_is_told_once_and_the_first_evidence_is_kept(sentence: str) -> None:
    scene = CORRECTED[sentence][0]
    before = scene.job.status.incidents[-1]
    scene = scene.written()
    incident = scene.job.status.incidents[-1]
    assert f"(first taken for {before.class_.value}: {before.message}" in incident.message
    assert (incident.number, incident.rank, incident.start_time) == (
        before.number,
        before.rank,
        before.start_time,
    )
    assert "Corrected" not in [note.reason for note in scene.plan().notes]


def closed(scene: Scene) -> Scene:
    last = scene.job.status.incidents[-1].model_copy(update={"resolved_time": scene.now})
    return scene.status(incidents=(last,))


def failed_peer(code: int = 1, **fields: object) -> Scene:
    """Node rank 0 ended first and was named; node rank 1 is another one, and what is told of it comes later."""
    return restarted(running().steps(40).exits(0, code=code, **fields), 1)  # type: ignore[arg-type]


def dies(scene: Scene, at: float, later: float = 40) -> Scene:
    """Node rank 1 was last heard at that time, and its node is called not ready so much later."""
    return scene.silent(1, since=at).later(later).agent(0, last_seen=scene.now).node("n1", ready=None)


def bad(scene: Scene, later: float = 60) -> Scene:
    return scene.written().later(later).node("n1", trouble="GpuUnhealthy (Xid79)")


ELSEWHERE: dict[str, tuple[Scene, IncidentClass, str]] = {
    "the node of another member is called not ready": (
        dies(failed_peer(), 0.5), K.NODE_LOSS, "incident 1 was NodeLoss on n1, free, not ProcessFault on n0: node n1 is not ready"),
    "after the ranks gave up in a collective": (
        dies(restarted(running().steps(40).exits(0, signal=6)), 2.0), K.NODE_LOSS, "not ProcessFault on n0"),
    "after a rendezvous failed": (
        dies(failed_peer(85, contract=True), -1.0), K.NODE_LOSS, "not RendezvousFault on n0"),
    "after a watchdog barked": (dies(failed_peer(84, contract=True), 0.5), K.NODE_LOSS, "not Hang on n0"),
    "the node is deleted": (dies(failed_peer(), 0.5).without_node("n1"), K.NODE_LOSS, "node n1 is gone from the cluster"),
    "a device of another member is called bad": (
        bad(failed_peer()), K.GPU_FAULT, "incident 1 was GpuFault on n1, free, not ProcessFault on n0: node n1 has the condition"),
    "another member was being drained": (
        failed_peer().pod(1, deleting=True, disruption="EvictionByEvictionAPI"), K.DRAIN, "Drain on n1, free"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ELSEWHERE)
def test_the_root_is_the_node_that_the_cluster_speaks_of_not_the_peer_that_fell_with_it(
    sentence: str,
) -> None:
    scene, kind, says = ELSEWHERE[sentence]
    plan = scene.plan()
    assert plan.status is not None and plan.intent and not plan.actions
    told = [note.message for note in plan.notes if note.reason == "Corrected"]
    assert len(told) == 1 and says in told[0], told
    incident = plan.status.incidents[-1]
    assert (incident.class_, incident.node, incident.node_rank, incident.pod) == (
        kind,
        "n1",
        1,
        scene.of(1).name,
    )
    assert (incident.rank, incident.exit_code, incident.signal, incident.charged) == (None, None, None, False)
    assert plan.status.restarts == RestartCounts(total=1)
    assert "n1" in [node.name for node in plan.status.excluded_nodes]
    assert "Corrected" not in [note.reason for note in scene.written().later(1).plan().notes], "told twice"


STAYS: dict[str, Scene] = {
    "a node that another member lost long after": dies(failed_peer(), 9),
    "a node lost after a rank was killed from outside": dies(restarted(running().steps(40).exits(0, signal=9)), 0.5),
    "a device that was called bad before": bad(failed_peer().node("n1", trouble="GpuUnhealthy (Xid79)")),
    "a device that is called bad too late": bad(failed_peer(), 121),
    "a device of which a new leader does not know since when": (
        failed_peer().written().see(memory={}).node("n1", trouble="GpuUnhealthy (Xid79)")),
    "a closed incident": of_memory(closed(lost_container())),
    "a rank that another signal ended": of_memory(restarted(running().exits(1, signal=11))),
    "an exit of its own": of_memory(restarted(running().exits(1, code=1))),
    "a pod that serves in the next round and is drained there": (
        killed_rank().status(released_round=2).all(state=AgentState.RUNNING, round=2)
        .pod(1, deleting=True, disruption="EvictionByEvictionAPI")),
    "a disruption half a minute later": (
        killed_rank().later(31).pod(1, deleting=True, disruption="PreemptionByScheduler")),
    "a disruption of a pod that lives on": killed_rank().pod(1, disruption="PreemptionByScheduler"),
    "a disruption of another pod": killed_rank().pod(0, deleting=True, disruption="PreemptionByScheduler"),
    "a node that is well": silent_agent(),
    "a node that is lost after a rank was killed": killed_rank().node("n1", ready=None),
    "a preemption, whatever is said of memory": of_memory(
        restarted(running().exits(1, code=75, ordered=True), 120)),
    "a job without incidents": running(),
}  # fmt: skip


@pytest.mark.parametrize("sentence", STAYS)
def test_what_stays_as_it_was_judged(sentence: str) -> None:
    scene = STAYS[sentence]
    plan = scene.plan()
    assert plan.status is not None
    assert "Corrected" not in [note.reason for note in plan.notes]
    judged = {i.number: (i.class_, i.charged) for i in scene.job.status.incidents}
    assert {i.number: (i.class_, i.charged) for i in plan.status.incidents if i.number in judged} == judged


def test_a_rule_of_the_user_keeps_its_say_over_the_charge() -> None:
    scene = running().policy(**rules(("flaky", "In", [137], "Ignore"))).steps(40).exits(1, signal=9)
    plan = of_memory(restarted(scene)).plan()
    assert plan.status is not None
    last = plan.status.incidents[-1]
    assert (last.class_, last.charged, last.rule) == (K.OUT_OF_MEMORY, False, "flaky")
    assert plan.status.restarts == RestartCounts(total=1)


def test_a_second_time_out_of_memory_that_is_known_late_leaves_the_node_too() -> None:
    earlier = an_incident(
        1, at=-100, class_=K.OUT_OF_MEMORY, fingerprint="OutOfMemory/137", progress_step=40, resolved_time=after(-50)
    )  # fmt: skip
    scene = running().incident(earlier).steps(40).container(1, 137)
    plan = of_memory(restarted(scene)).plan()
    assert plan.status is not None and plan.status.same_point is not None
    assert plan.status.same_point.count == 2
    assert [node.name for node in plan.status.excluded_nodes] == ["n1"]


def test_the_poison_counter_is_what_the_incidents_tell() -> None:
    def of(*told: tuple[IncidentClass, str, int]) -> SamePoint | None:
        return same_point(tuple(an_incident(n, class_=c, fingerprint=f, progress_step=s)
                                for n, (c, f, s) in enumerate(told, 1)))  # fmt: skip

    fault, preempted = (K.PROCESS_FAULT, "ProcessFault/1", 40), (K.PREEMPTION, "Preemption", 41)
    assert of() is None and of(preempted) is None
    assert of(fault, preempted, fault) == SamePoint(fingerprint="ProcessFault/1", step=40, count=2)
    assert of(fault, fault, (K.HANG, "Hang", 40)) == SamePoint(fingerprint="Hang", step=40, count=1)
    assert of(fault, (*fault[:2], 50)) == SamePoint(fingerprint="ProcessFault/1", step=50, count=1)


def test_an_incident_that_another_one_overtakes_is_over_then() -> None:
    scene = killed_rank().status(released_round=2).all(state=AgentState.RUNNING, round=2).later(30)
    scene = scene.exits(0, code=1, at=35)
    scene = scene if scene.plan().intent else scene.written().later(1)
    plan = scene.plan()
    assert plan.status is not None and plan.status.round == 3
    first, second = plan.status.incidents
    assert (first.resolved_time, second.resolved_time) == (second.start_time, None)
