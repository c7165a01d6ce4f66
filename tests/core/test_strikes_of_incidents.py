"""From the incidents of jobs to strikes: which speak against a node, once each, and what takes them back."""

import pytest

from rerail_api.status import Incident
from rerail_api.v1alpha1 import TrainingJob
from rerail_operator.core.strikes import Account, State, Strike, account_of, cleared, entered, verdicts
from rerail_operator.core.strikes import told as due
from rerail_operator.core.taxonomy import Witness
from rerail_operator.core.world import Nodes

from .ground import RACK, ZONE, a_job, a_node, nodes_of
from .struck import FORTY, HOUR, NOW, K, ago

RACK_7 = ("z", "", "r7")


def interrupted(*incidents: Incident, uid: str = "u1") -> TrainingJob:
    job = a_job()
    meta = job.metadata.model_copy(update={"uid": uid})
    status = job.status.model_copy(update={"incidents": incidents})
    return job.model_copy(update={"metadata": meta, "status": status})


def incident(number: int, kind: K = K.NODE_LOSS, node: str | None = "n1", hours: float = 1.0) -> Incident:
    return Incident(number=number, round=number, class_=kind, node=node, start_time=ago(hours))


def told(*incidents: Incident, uid: str = "u1", nodes: Nodes = FORTY) -> Account:
    return account_of(interrupted(*incidents, uid=uid), nodes)


SPEAK = {
    K.NODE_LOSS: True,
    K.NETWORK: True,
    K.GPU_FAULT: True,
    K.HANG: True,
    K.PREEMPTION: False,
    K.DRAIN: False,
    K.OUT_OF_MEMORY: False,
    K.CONTAINER_LOSS: False,
    K.PROCESS_FAULT: False,
    K.USER_ERROR: False,
    K.NUMERIC: False,
    K.BAD_DATA: False,
    K.CHECKPOINT_FAULT: False,
    K.RENDEZVOUS_FAULT: False,
    K.CONTROL_PLANE: False,
    K.UNPLACEABLE: False,
}


def test_which_classes_speak_against_a_node() -> None:
    assert {kind: bool(told(incident(1, kind)).strikes) for kind in K} == SPEAK


def test_a_strike_says_who_says_it_and_where_the_node_stood() -> None:
    nodes = nodes_of(a_node("n1", labels={ZONE: "z", RACK: "r7"}))
    ((node, found),) = told(incident(4), nodes=nodes).strikes
    assert node == "n1"
    assert found == Strike(ago(1), K.NODE_LOSS, "team", "gpt", "u1", 4, RACK_7, seen=False)


SIGHT = {
    "the node is not ready": (nodes_of(a_node("n1", ready=False)), True),
    "nobody knows of the node": (nodes_of(a_node("n1", ready=None)), True),
    "the node is gone": (nodes_of(), True),
    "the node is ready: only its peers say that it was lost": (nodes_of(a_node("n1")), False),
}


@pytest.mark.parametrize(("nodes", "seen"), SIGHT.values(), ids=SIGHT)
def test_a_loss_is_seen_where_the_api_server_agrees(nodes: Nodes, seen: bool) -> None:
    ((_, strike),) = told(incident(1), nodes=nodes).strikes
    assert strike.seen is seen
    ((_, hang),) = told(incident(1, K.HANG), nodes=nodes).strikes
    assert not hang.seen


def test_a_device_that_the_cluster_calls_bad_counts_alone_and_one_that_a_program_blames_does_not() -> None:
    by_cluster = incident(1, K.GPU_FAULT).model_copy(update={"fingerprint": "GpuFault/device/SIGBUS"})
    by_program = incident(2, K.GPU_FAULT).model_copy(update={"fingerprint": "GpuFault/81/device"})
    strikes = [strike for _, strike in told(by_cluster, by_program).strikes]
    assert [strike.witness for strike in strikes] == [Witness.CLUSTER, Witness.PROGRAM]


def test_what_the_api_server_says_a_little_later_counts_and_is_kept() -> None:
    job, gone = interrupted(incident(1, hours=0.01)), nodes_of(a_node("n1", ready=False))
    at_first, later, at_last = (due(job, nodes, NOW) for nodes in (FORTY, gone, FORTY))
    assert at_first != later and at_first == at_last
    book = entered({}, [account_of(job, FORTY)], NOW)
    assert not book["n1"].strikes[0].seen
    book = entered(book, [account_of(job, gone)], NOW)
    assert book["n1"].strikes[0].seen
    assert entered(book, [account_of(job, FORTY)], NOW) == book


def test_what_happens_to_a_node_long_after_an_incident_says_nothing_of_it() -> None:
    job = interrupted(incident(1, hours=0.1))
    assert due(job, FORTY, NOW) == due(job, nodes_of(a_node("n1", ready=False)), NOW)


def test_a_strike_is_shared_by_the_nodes_that_the_incident_took() -> None:
    rack = incident(1).model_copy(update={"nodes_lost": 8})
    ((_, found),) = told(rack).strikes
    assert found.among == 8
    assert due(interrupted(incident(1)), FORTY, NOW) != due(interrupted(rack), FORTY, NOW)


def test_an_incident_that_names_no_node_strikes_none() -> None:
    assert told(incident(1, node=None)).strikes == ()


def test_an_account_entered_again_changes_nothing() -> None:
    account = told(incident(1, hours=3), incident(2, hours=1), incident(3, node="n2"))
    book = entered({}, [account], NOW)
    assert {node: len(r.strikes) for node, r in book.items()} == {"n1": 2, "n2": 1}
    assert entered(book, [account], NOW + HOUR) == book


def test_a_corrected_incident_takes_its_strike_back() -> None:
    book = entered({}, [told(incident(1), incident(2, hours=0.5))], NOW)
    book = entered(book, [told(incident(1, K.PREEMPTION), incident(2, node="n2", hours=0.5))], NOW)
    assert {node: [s.number for s in r.strikes] for node, r in book.items()} == {"n2": [2]}


def test_an_incident_that_the_job_no_longer_remembers_still_counts() -> None:
    book = entered({}, [told(incident(1, hours=2), incident(2))], NOW)
    assert [s.number for s in entered(book, [told(incident(2))], NOW)["n1"].strikes] == [1, 2]


def test_a_job_of_the_same_name_made_anew_is_another_witness() -> None:
    book = entered({}, [told(incident(1)), told(incident(1, hours=2), uid="u2")], NOW)
    assert len(book["n1"].strikes) == 2


def test_where_a_node_stood_is_kept_when_the_node_is_gone() -> None:
    nodes = nodes_of(a_node("n1", labels={RACK: "r7"}, ready=False))
    book = entered({}, [told(incident(1), nodes=nodes)], NOW)
    assert entered(book, [told(incident(1), nodes=nodes_of())], NOW) == book


def test_a_cleared_node_stays_cleared_although_the_incidents_are_told_again() -> None:
    account = told(*(incident(n, hours=n) for n in (3, 2, 1)))
    book = cleared(entered({}, [account], NOW), "n1", NOW)
    book = entered(book, [account], NOW + HOUR)
    verdict = verdicts(book, FORTY, NOW + HOUR)["n1"]
    assert (verdict.state, verdict.why) == (State.CLEARED, "by hand at 2026-05-08 12:00 UTC")
    late = told(*(incident(n, hours=n) for n in (3, 2, 1)), incident(4, hours=-0.5))
    assert [s.number for s in entered(book, [late], NOW + HOUR)["n1"].strikes] == [4]


def test_clearing_covers_strikes_that_a_faster_clock_wrote() -> None:
    book = entered({}, [told(incident(1, hours=-0.01))], NOW)
    assert cleared(book, "n1", NOW)["n1"].strikes == ()
