"""A gang that does as it was told: what the coordinator tells at once, and what it tells together."""

from dataclasses import replace
from typing import Any

import pytest

from rerail_api.contract import AgentState

from .agent_desk import QUICK, OpenDesk
from .waiting import until


async def test_a_gang_that_does_as_it_was_told_is_told_of_together(open_desk: OpenDesk) -> None:
    desk = await open_desk(replace(QUICK, progress=60.0))
    gang = [await desk.agent(number) for number in range(3)]
    for client in gang:
        await client.receive("welcome")
    await until(lambda: desk.coordinator.connections == 3)
    order = {"do": "join", "round": 1}
    for number in range(3):
        assert desk.coordinator.send(f"uid-{number}", order)
    before = len(desk.changes)
    for number in (0, 1):
        await gang[number].say(state="Ready", round=1)
        await until(lambda number=number: desk.seen(number).state is AgentState.READY)
    assert len(desk.changes) == before, "the third is still on its way: that news can wait for its own"
    await gang[2].say(state="Ready", round=1)
    await until(lambda: len(desk.changes) == before + 1)


UNORDERED: dict[str, dict[str, Any]] = {
    "a rank that fails": {"state": "Failed", "exit": {"exit_code": 1, "rank": 0}},
    "processes that cannot be stopped": {"state": "Stuck"},
    "an exit that nobody ordered": {"state": "Stopping", "exit": {"signal": 9, "rank": 0}},
}


@pytest.mark.parametrize("news", UNORDERED)
async def test_what_nobody_ordered_is_told_at_once(open_desk: OpenDesk, news: str) -> None:
    desk = await open_desk(replace(QUICK, progress=60.0))
    gang = [await desk.agent(number) for number in range(2)]
    for client in gang:
        await client.receive("welcome")
    await until(lambda: desk.coordinator.connections == 2)
    for number in range(2):
        assert desk.coordinator.send(f"uid-{number}", {"do": "join", "round": 1})
    before = len(desk.changes)
    await gang[0].say(round=1, **UNORDERED[news])
    await until(lambda: len(desk.changes) > before, what="a pass is asked for")


FAULTS = {
    "a rank that fails": ({"round": 1, "state": "Failed", "exit": {"exit_code": 1, "rank": 0}}, True),
    "a rank that was told to stop": (
        {"round": 1, "state": "Stopped", "exit": {"exit_code": 1, "rank": 0, "ordered": True}},
        False,
    ),
    "an agent that comes to the barrier": ({"round": 1, "state": "Ready"}, False),
    "an agent that is not heard any more": (None, True),
}


@pytest.mark.parametrize("news", FAULTS)
async def test_a_fault_is_told_as_one(open_desk: OpenDesk, news: str) -> None:
    desk = await open_desk(replace(QUICK, heartbeat=30.0, silent=90.0))
    faults: list[str] = []
    desk.coordinator.on_fault = faults.append
    client = await desk.agent()
    await client.receive("welcome")
    said, is_fault = FAULTS[news]
    if said is None:
        await client.close()
        await until(lambda: desk.coordinator.connections == 0)
    else:
        before = len(desk.changes)
        await client.say(**said)
        await until(lambda: len(desk.changes) + len(faults) > before, what="the report is told of")
    assert bool(faults) is is_fault


async def test_one_that_goes_keeps_nobody_waiting(open_desk: OpenDesk) -> None:
    desk = await open_desk(replace(QUICK, progress=60.0))
    gang = [await desk.agent(number) for number in range(2)]
    for client in gang:
        await client.receive("welcome")
    await until(lambda: desk.coordinator.connections == 2)
    for number in range(2):
        assert desk.coordinator.send(f"uid-{number}", {"do": "join", "round": 1})
    await gang[1].close()
    await until(lambda: desk.coordinator.connections == 1)
    before = len(desk.changes)
    await gang[0].say(state="Ready", round=1)
    await until(lambda: len(desk.changes) > before, what="the last one that was waited for has come")


async def test_a_repeated_report_is_a_sign_of_life(open_desk: OpenDesk) -> None:
    desk = await open_desk(replace(QUICK, silent=60.0))
    client = await desk.agent()
    await client.receive("welcome")
    await client.say(state="Ready", round=1)
    await until(lambda: desk.seen().state is AgentState.READY)
    await until(lambda: not desk.seen().connected, what="three beats are missed")
    first = desk.seen()
    await client.say()
    await until(lambda: desk.seen().connected, what="the same words are heard")
    assert desk.seen() == replace(first, connected=True, last_seen=desk.seen().last_seen)
    assert desk.seen().last_seen > first.last_seen
