"""Operators that die, take over or find a cluster that is away or old: nothing is lost, doubled or touched."""

import time

import pytest

from .jobs import job
from .operator_process import SYSTEM
from .yard import Yard

pytestmark = pytest.mark.controlplane

TAKEOVER_SECONDS = 15.0
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.rerail.dev"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/rerail"


def holder(yard: Yard) -> str:
    """The name of the operator that leads."""
    return str(yard.cluster.api.get(LEASE)["spec"]["holderIdentity"]).partition("_")[0]


def test_an_operator_killed_in_the_middle_of_a_restart_finishes_it_once(yard: Yard) -> None:
    (operator,) = yard.operate(1)
    yard.submit(job("middle"))
    yard.until_job("middle", phase="Running")
    first, second = yard.pods("middle")
    before = yard.uids("middle")
    yard.agents.fail(second, rank=1, exit_code=3)
    yard.until_job("middle", round=2)
    operator.kill()
    yard.operate(1)
    seen = yard.until_job("middle", phase="Running", round=2)
    assert (seen["restarts"]["total"], len(seen["incidents"])) == (1, 1)
    assert yard.uids("middle") == before
    # The next one is counted by the new process as the second.
    yard.agents.fail(first, exit_code=3)
    seen = yard.until_job("middle", phase="Running", round=3)
    assert (seen["restarts"]["total"], len(seen["incidents"])) == (2, 2)


def test_a_leader_killed_between_a_raised_round_and_its_release_leaves_one_restart(yard: Yard) -> None:
    (leader,) = yard.operate(1)
    yard.submit(job("halfway"))
    yard.until_job("halfway", phase="Running")
    first, second = yard.pods("halfway")
    before = yard.uids("halfway")
    yard.agents.mute(first)  # it cannot come to the barrier: the round is raised and stays closed
    yard.agents.fail(second, rank=1, exit_code=3)
    seen = yard.until_job("halfway", round=2)
    leader.kill()
    assert seen["releasedRound"] == yard.status("halfway")["releasedRound"] == 1
    yard.agents.unmute(first)
    yard.operate(1)
    seen = yard.until_job("halfway", phase="Running", round=2, releasedRound=2)
    assert (seen["restarts"]["total"], len(seen["incidents"])) == (1, 1)
    assert yard.uids("halfway") == before
    assert {len(yard.agents.orders(pod, "run")) for pod in (first, second)} == {2}


def test_a_standby_takes_over_from_a_killed_leader_and_repeats_nothing(yard: Yard) -> None:
    both = yard.operate(2)
    yard.submit(job("held"))
    yard.until_job("held", phase="Running")
    first, second = yard.pods("held")
    before, term = yard.uids("held"), yard.agents.term(first)
    leader = next(one for one in both if one.name == holder(yard))
    (standby,) = [one for one in both if one is not leader]
    runs = {pod: len(yard.agents.orders(pod, "run")) for pod in (first, second)}
    leader.kill()
    killed = time.monotonic()
    yard.until("the standby leads", lambda: holder(yard) == standby.name, 2 * TAKEOVER_SECONDS)
    took = time.monotonic() - killed
    yard.until(
        "the agents follow the new leader",
        lambda: all(yard.agents.term(pod) > term for pod in (first, second)),
    )
    yard.agents.fail(second, rank=1, exit_code=3)
    seen = yard.until_job("held", phase="Running", round=2)
    assert took <= TAKEOVER_SECONDS
    assert (seen["restarts"]["total"], yard.uids("held")) == (1, before)
    assert {pod: len(yard.agents.orders(pod, "run")) for pod in (first, second)} == {
        pod: count + 1 for pod, count in runs.items()
    }


def test_an_api_server_away_for_a_minute_costs_the_gang_nothing(yard: Yard) -> None:
    (operator,) = yard.operate(1)
    yard.submit(job("away"))
    yard.until_job("away", phase="Running")
    first, second = yard.pods("away")
    before, starts = yard.uids("away"), operator.starts

    def away(seconds: float) -> None:
        until = time.monotonic() + seconds
        yard.until("the time is over", lambda: time.monotonic() > until, seconds + 30, kept=[operator])

    yard.cluster.pause_apiserver()  # connections stay open, nothing answers
    try:
        away(30)
    finally:
        yard.cluster.resume_apiserver()
        yard.cluster.kill_apiserver()  # connections break, nobody listens
    # A rank that fails while nobody can write is answered once somebody can.
    yard.agents.fail(second, rank=1, exit_code=3)
    away(30)
    yard.cluster.start_apiserver()
    seen = yard.until(
        "the gang runs again",
        lambda: (told := yard.status("away")).get("round") == 2 and told["phase"] == "Running" and told,
        90,
        kept=[operator],
    )
    assert operator.starts > starts, "a leader that cannot renew its Lease has to end"
    assert (seen["restarts"]["total"], yard.uids("away")) == (1, before)
    assert yard.agents.connected(first)


def test_an_operator_under_an_old_crd_leads_nothing_and_says_what_to_do(yard: Yard) -> None:
    (operator,) = yard.operate(1)
    operator.stop()
    notes = yard.cluster.api.get(CRD)["metadata"]["annotations"]
    mark = next(key for key in notes if key.endswith("/schema-hash"))
    yard.cluster.api.patch(CRD, {"metadata": {"annotations": {mark: "of-another-release"}}})
    try:
        operator.start()
        yard.until("it says that it is not ready", lambda: "kubectl apply" in operator.readiness()[1])
        code, text = operator.readiness()
        assert code == 503
        assert "schema of-another-release" in text and "kubectl apply --server-side" in text
        assert "kubectl apply --server-side" in operator.tail()
        yard.submit(job("early", nodes=1))
        assert yard.cluster.api.get(LEASE)["spec"]["holderIdentity"] == ""
        assert yard.status("early") == {}
    finally:
        yard.cluster.api.patch(CRD, {"metadata": {"annotations": {mark: notes[mark]}}})
    # It looks again by itself.
    yard.until_job("early", phase="Running")
    assert operator.starts == yard.operators[0].starts
