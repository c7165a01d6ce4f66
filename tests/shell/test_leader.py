"""Election by Lease, on the in-memory cluster and a clock moved by hand."""

import asyncio
import random
from typing import Any

import pytest

from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.leader import Candidate, Leadership, LeaseTimes, next_term
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.memory_faults import Fault, FaultKind

from .hand_clock import START, HandClock
from .waiting import until


class Ground:
    """One cluster, one clock, candidates a, b, ..."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.cluster = MemoryCluster(self.clock)
        self.lost: list[str] = []

    def candidate(self, name: str, cluster: Any = None) -> Leadership:
        where = Candidate("rerail-system", "rerail-operator", name, f"{name}.example:7400")
        return Leadership(
            cluster or self.cluster, self.clock, where, lambda why: self.lost.append(f"{name}: {why}")
        )

    async def lease(self) -> Any:
        return await self.cluster.get(Kind.LEASE, "rerail-system", "rerail-operator")


@pytest.fixture
def ground() -> Ground:
    return Ground()


async def test_the_first_one_leads_and_the_second_knows_its_address(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    await b.step()
    assert (a.is_leader, b.is_leader) == (True, False)
    assert b.leader_address == "a.example:7400"
    assert a.leading_since == START
    spec = (await ground.lease())["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("a", 9)
    assert spec["renewTime"] == "2026-01-01T00:00:00.000000Z"


async def test_a_renewed_lease_is_kept_for_ever_under_one_term(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    term = a.term
    for _ in range(50):
        ground.clock.advance(2)
        await a.step()
        await b.step()
        assert (a.is_leader, b.is_leader) == (True, False)
    assert a.term == term == b.term
    assert ground.lost == []


async def test_a_crashed_leader_is_followed_within_11_seconds_by_a_higher_term(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    ground.clock.advance(1.9)
    await b.step()
    waited = 0.0
    while not b.is_leader:
        pause = b._pause()
        ground.clock.advance(pause)
        waited += pause
        await b.step()
    assert 9 <= waited <= 11
    assert b.term > a.term
    assert not a.is_leader, "its own clock tells it so, without a call"
    assert b.leader_address == "b.example:7400"


async def test_a_lease_given_back_is_taken_at_the_next_look(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    await b.step()
    await a.release()
    assert not a.is_leader
    await b.step()
    assert b.is_leader and b.term > a.term
    assert ground.lost == [], "giving back is not losing"


async def test_a_leader_that_cannot_renew_gives_up_before_others_may_lead(ground: Ground) -> None:
    a = ground.candidate("a")
    await a.step()
    ground.cluster.faults.add(Fault(FaultKind.DROPPED, kind=Kind.LEASE, times=100))
    for _ in range(3):
        ground.clock.advance(2)
        await a.step()
    assert a.lost and not a.is_leader
    assert len(ground.lost) == 1
    assert "not renewed for 6 s" in ground.lost[0] and "connection was lost" in ground.lost[0]


async def test_a_process_that_stood_still_notices_before_it_does_anything(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    await b.step()
    ground.clock.advance(30)
    assert not a.is_leader
    await b.step()
    await a.step()
    assert b.is_leader
    assert ground.lost == ["a: not renewed for 6 s: this process stood still"]
    assert (await ground.lease())["spec"]["holderIdentity"] == "b"


@pytest.mark.parametrize("what", [FaultKind.LOST_REPLY, FaultKind.CONFLICT, FaultKind.THROTTLED])
@pytest.mark.parametrize("verb", ["create", "replace", "get"])
async def test_one_bad_answer_neither_loses_the_lease_nor_raises_the_term(
    ground: Ground, what: FaultKind, verb: str
) -> None:
    a = ground.candidate("a")
    if verb != "create":
        await a.step()
    ground.cluster.faults.add(Fault(what, verb=verb, kind=Kind.LEASE))
    terms = set()
    for _ in range(4):
        ground.clock.advance(1)
        await a.step()
        terms.add(a.term) if a.is_leader else None
    assert a.is_leader and len(terms) == 1
    assert ground.lost == []


async def test_a_deleted_lease_is_made_again_under_the_same_term(ground: Ground) -> None:
    a = ground.candidate("a")
    await a.step()
    term = a.term
    await ground.cluster.delete(Kind.LEASE, "rerail-system", "rerail-operator")
    ground.clock.advance(1)
    await a.step()
    await a.step()
    assert a.is_leader and a.term == term
    assert (await ground.lease())["spec"]["holderIdentity"] == "a"


async def test_terms_rise_even_when_the_lease_and_all_who_knew_it_are_gone(ground: Ground) -> None:
    a = ground.candidate("a")
    await a.step()
    await ground.cluster.delete(Kind.LEASE, "rerail-system", "rerail-operator")
    ground.clock.advance(5)
    b = ground.candidate("b")
    await b.step()
    assert b.is_leader and b.term > a.term
    await a.step()  # conflict
    await a.step()
    assert ground.lost == ["a: the Lease is held by b now"]


async def test_a_standby_that_finds_the_lease_deleted_waits_for_its_holder_to_notice(ground: Ground) -> None:
    a, b = ground.candidate("a"), ground.candidate("b")
    await a.step()
    await b.step()
    await ground.cluster.delete(Kind.LEASE, "rerail-system", "rerail-operator")
    ground.clock.advance(1)
    await b.step()
    assert not b.is_leader
    await a.step()
    await a.step()
    await b.step()
    assert (a.is_leader, b.is_leader) == (True, False)
    await ground.cluster.delete(Kind.LEASE, "rerail-system", "rerail-operator")
    ground.clock.advance(9)
    await b.step()
    assert (a.is_leader, b.is_leader) == (False, True)


async def test_a_lease_taken_by_force_ends_its_holder(ground: Ground) -> None:
    a = ground.candidate("a")
    await a.step()
    lease = await ground.lease()
    lease["spec"]["holderIdentity"] = "somebody"
    await ground.cluster.replace(Kind.LEASE, "rerail-system", lease)
    ground.clock.advance(1)
    await a.step()  # conflict
    await a.step()
    assert ground.lost == ["a: the Lease is held by somebody now"]


async def test_a_lease_made_by_hand_and_empty_is_nobodys(ground: Ground) -> None:
    meta = {"name": "rerail-operator", "namespace": "rerail-system", "annotations": {"team": "x"}}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
    await ground.cluster.create(Kind.LEASE, "rerail-system", lease)
    a = ground.candidate("a")
    await a.step()
    assert a.is_leader
    assert (await ground.lease())["metadata"]["annotations"]["team"] == "x"


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_two_never_lead_and_terms_never_repeat(seed: int) -> None:
    dice, ground = random.Random(seed), Ground()
    candidates = [ground.candidate(name) for name in "abc"]
    reigns: list[int] = []
    leading: Leadership | None = None
    for number in range(300):
        ground.clock.advance(dice.choice([0.1, 0.5, 1, 2, 2, 2, 5, 8, 12]))
        if dice.random() < 0.3:
            what = dice.choice(list(FaultKind))
            ground.cluster.faults.add(Fault(what, kind=Kind.LEASE, times=dice.randint(1, 3)))
        index = dice.randrange(3)
        await candidates[index].step()
        if candidates[index].lost:
            candidates[index] = ground.candidate(f"restarted-{number}")
        leaders = [candidate for candidate in candidates if candidate.is_leader]
        if len(leaders) == 1 and leaders[0] is not leading:
            leading = leaders[0]
            reigns.append(leading.term)
        assert len(leaders) <= 1
    assert len(reigns) > 5
    assert reigns == sorted(set(reigns))


def test_a_term_fits_the_field_and_follows_the_clock() -> None:
    assert next_term(0, START) == 1
    assert next_term(500, START) == 501
    assert next_term(0, START.replace(year=2090)) < 2**31


async def test_run_elects_renews_and_ends_when_lost() -> None:
    cluster, lost = MemoryCluster(SystemClock()), []
    times = LeaseTimes(lease=0.9, deadline=0.4, retry=0.05)
    where = Candidate.of_pod("ns", "lease", "pod-0", "pod-0:7400")
    assert (
        where.holder.startswith("pod-0_")
        and where.holder != Candidate.of_pod("ns", "lease", "pod-0", "").holder
    )
    leadership = Leadership(cluster, SystemClock(), where, lost.append, times)
    running = asyncio.create_task(leadership.run())
    await asyncio.wait_for(leadership.wait_elected(), 5)
    await asyncio.sleep(0.6)
    assert leadership.is_leader, "renewed past its deadline"
    cluster.faults.add(Fault(FaultKind.DROPPED, kind=Kind.LEASE, times=10_000))
    await asyncio.wait_for(running, 10)
    await until(lambda: lost)
