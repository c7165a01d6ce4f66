"""The coordinator over real sockets, spoken to by the agents' stand-in."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rerail_api.contract import MAX_FRAME_BYTES, AgentState
from rerail_operator.core.world import Release
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.tokens import Identity, TokenRefused

from .agent_desk import QUICK, Desk, OpenDesk
from .waiting import until

RELEASE = {
    "round": 1,
    "node_rank": 0,
    "num_nodes": 1,
    "nproc": 2,
    "master_addr": "127.0.0.1",
    "master_port": 29501,
    "min_step": 0,
    "checkpoint_seconds": 118,
}


async def test_an_agent_goes_through_barrier_run_exit_and_finish(desk: Desk) -> None:
    client = await desk.agent()
    assert await client.receive() == {"kind": "welcome", "v": 1, "term": 1}
    obeying = asyncio.create_task(client.obey())
    assert desk.coordinator.send("uid-0", {"do": "join", "round": 1})
    await until(lambda: desk.seen() and desk.seen().state is AgentState.READY)
    ready = desk.seen()
    assert ready and (ready.round, ready.address, ready.port) == (1, "127.0.0.1", 29501)
    assert desk.coordinator.send("uid-0", {"do": "run", "round": 1, "release": RELEASE})
    await until(lambda: desk.seen() and desk.seen().state is AgentState.RUNNING)
    running = desk.seen()
    assert running and running.release == Release(**RELEASE) and running.ranks_alive == 2
    assert desk.coordinator.send("uid-0", {"do": "finish", "code": 0, "message": "done"})
    await asyncio.wait_for(obeying, 10)
    await until(lambda: desk.seen() and not desk.seen().connected)
    orders = [frame for frame in client.received if frame["kind"] == "order"]
    assert [(order["do"], order["term"]) for order in orders] == [("join", 1), ("run", 1), ("finish", 1)]
    desk.coordinator.forget("uid-0")
    assert desk.coordinator.agents("uid-job") == {}


async def test_an_exit_keeps_its_instant_however_often_it_is_repeated(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    exit_frame = {"rank": 3, "local_rank": 1, "exit_code": None, "signal": 9, "lines": ["boom"], "age": 5.0}
    await client.say(state="Failed", round=1, exit=exit_frame)
    await until(lambda: desk.seen() and desk.seen().exit)
    first = desk.seen()
    assert first and first.exit and first.exit.at
    assert 4.9 < (SystemClock().now() - first.exit.at).total_seconds() < 7
    changes = len(desk.changes)
    await client.say(exit={**exit_frame, "age": 5.3})
    await client.say(exit={**exit_frame, "age": 5.4}, port=29999)
    await until(lambda: desk.seen().port == 29999)
    assert desk.seen().exit == first.exit
    assert len(desk.changes) == changes + 1, "a repeated exit is no change"
    await client.say(round=2, exit={**exit_frame, "age": 0.0})
    await until(lambda: desk.seen().round == 2)
    assert desk.seen().exit.at > first.exit.at, "the same death in another round is another exit"


async def test_the_same_order_goes_out_once_and_again_only_when_it_is_not_followed(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    join = {"do": "join", "round": 1}
    for _ in range(5):
        assert desk.coordinator.send("uid-0", join)
    assert (await client.receive("order"))["do"] == "join"
    await asyncio.sleep(QUICK.resend)
    assert desk.coordinator.send("uid-0", join)
    assert (await client.receive("order"))["do"] == "join"
    await client.say(state="Ready", round=1)
    await until(lambda: desk.seen().state is AgentState.READY)
    await asyncio.sleep(QUICK.resend)
    assert desk.coordinator.send("uid-0", join), "the agent shows it: nothing to send, and that is a success"
    desk.coordinator.send("uid-0", {"do": "run", "round": 1, "release": RELEASE})
    assert (await client.receive("order"))["do"] == "run"


async def test_an_order_given_while_the_agent_was_away_waits_for_it(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    await client.close()
    await until(lambda: not desk.seen().connected)
    assert desk.coordinator.send("uid-0", {"do": "join", "round": 4}) is False
    again = await desk.agent(report={"state": "Running", "round": 3})
    assert (await again.receive("order"))["round"] == 4
    newer = await desk.agent(report={"state": "Running", "round": 5})
    await newer.receive("welcome")
    assert (await newer.receive())["kind"] == "ping", "an order of an older round is not sent again"


async def test_an_unknown_agent_cannot_be_told_anything(desk: Desk) -> None:
    assert desk.coordinator.send("uid-7", {"do": "join", "round": 1}) is False
    assert desk.coordinator.agents("uid-job") == {}


async def test_the_newest_connection_of_a_pod_counts(desk: Desk) -> None:
    old = await desk.agent()
    await old.receive("welcome")
    new = await desk.agent()
    await new.receive("welcome")
    assert await old.ended()
    await new.say(state="Ready", round=1)
    await until(lambda: desk.seen().state is AgentState.READY)
    assert desk.seen().connected


async def test_a_silent_agent_is_marked_then_dropped_and_welcomed_back(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    assert desk.seen().connected
    changes = len(desk.changes)
    await until(lambda: not desk.seen().connected)
    assert len(desk.changes) == changes + 1
    await client.say()
    await until(lambda: desk.seen().connected)
    assert await client.ended(), "silent for too long: dropped"
    assert not desk.seen().connected
    back = await desk.agent()
    await back.receive("welcome")
    assert desk.seen().connected


REFUSED: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "no JSON": (b"GET / HTTP/1.1\n", "unreadable message"),
    "an endless line": (b"x" * (MAX_FRAME_BYTES + 2), "more than 65536 bytes"),
    "a report before the hello": ({"kind": "report", "report": {"state": "Idle"}}, "first message"),
    "another protocol version": ({"v": 99}, "protocol version 99 is not spoken here; spoken: 1"),
    "a wrong token": ({"token": "guess"}, "the token is not the one in token"),
    "a state that does not exist": ({"report": {"state": "Dreaming"}}, "$.report.state"),
    "a negative round": ({"report": {"state": "Idle", "round": -1}}, "$.report.round"),
    "a later leader's agent": (
        {"report": {"state": "Idle", "term": 9}},
        "has seen term 9, this leader's is 1",
    ),
    "no pod UID": ({"pod_uid": ""}, "names no pod UID"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_peer_that_breaks_the_rules_is_told_why(desk: Desk, case: str) -> None:
    sent, reason = REFUSED[case]
    client = await desk.agent(connect=False)
    client.reader, client.writer = await asyncio.open_connection("127.0.0.1", desk.coordinator.port)
    if isinstance(sent, bytes):
        await client.send_bytes(sent)
    else:
        await client.send_frame(sent if "kind" in sent else client.hello(**sent))
    assert reason in (await client.receive("refuse"))["reason"]
    assert await client.ended()
    assert desk.coordinator.agents("uid-job") == {}


async def test_a_broken_report_ends_the_connection_but_not_the_record(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    await client.send_frame({"kind": "report", "report": {"state": "Running", "ranks_alive": "many"}})
    assert "$.report.ranks_alive" in (await client.receive("refuse"))["reason"]
    await until(lambda: not desk.seen().connected)


async def test_a_crowd_that_says_nothing_delays_an_agent_but_does_not_keep_it_out(desk: Desk) -> None:
    crowd = [await asyncio.open_connection("127.0.0.1", desk.coordinator.port) for _ in range(10)]
    client = await desk.agent()
    assert (await client.receive(seconds=5))["kind"] == "welcome"
    for reader, writer in crowd:
        assert b"not authenticated within 0.4 s" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_a_standby_names_the_leader(open_desk: OpenDesk) -> None:
    standby = SimpleNamespace(is_leader=False, term=3, leader_address="10.0.0.7:7400")
    desk = await open_desk(leadership=standby)
    client = await desk.agent()
    assert await client.receive() == {"kind": "redirect", "address": "10.0.0.7:7400"}
    assert await client.ended()
    standby.is_leader, standby.term = True, 4
    client = await desk.agent()
    assert await client.receive() == {"kind": "welcome", "v": 1, "term": 4}
    assert (await client.receive("ping"))["term"] == 4


class OneIdentity:
    """A verifier that proves the same of every token, after a moment."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    async def verify(self, token: str) -> Identity:
        await asyncio.sleep(0.02)
        if token == "expired":
            raise TokenRefused("expired token")
        return self.identity


CLAIMS = {
    "another pod's UID": (Identity("team", "job-0", "uid-1"), "pod UID uid-1, the hello says uid-0"),
    "another pod's name": (Identity("team", "job-1", "uid-0"), "pod job-1, the hello says job-0"),
    "another namespace": (Identity("other", "job-0", "uid-0"), "namespace other, the hello says team"),
}


@pytest.mark.parametrize("case", CLAIMS)
async def test_an_agent_is_what_its_token_proves(open_desk: OpenDesk, case: str) -> None:
    identity, reason = CLAIMS[case]
    desk = await open_desk(verifier=OneIdentity(identity))
    client = await desk.agent()
    assert reason in (await client.receive("refuse"))["reason"]


async def test_what_an_agent_says_while_its_token_is_verified_is_heard(
    open_desk: OpenDesk,
) -> None:
    desk = await open_desk(verifier=OneIdentity(Identity("team", "job-0", "uid-0")))
    client = await desk.agent()
    await client.say(state="Ready", round=2)
    await client.receive("welcome")
    await until(lambda: desk.seen() and desk.seen().round == 2)
    expired = await desk.agent(1, token="expired")
    assert (await expired.receive())["reason"] == "expired token"


async def test_an_order_too_long_for_the_wire_is_an_error_here_and_now(desk: Desk) -> None:
    await (await desk.agent()).receive("welcome")
    with pytest.raises(ValueError, match="at most 65536"):
        desk.coordinator.send("uid-0", {"do": "finish", "code": 1, "message": "x" * MAX_FRAME_BYTES})
    assert desk.seen().connected
    again = await desk.agent()
    await again.receive("welcome")
    assert (await again.receive())["kind"] == "ping"


async def test_stop_hangs_up_and_frees_the_port(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    port = desk.coordinator.port
    await desk.coordinator.stop()
    assert await client.ended()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
