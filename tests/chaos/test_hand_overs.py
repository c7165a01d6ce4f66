"""Leaders that die in the middle of a rung, or of a standstill: the next ones count on, neither anew nor double."""

import asyncio
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from rerail_operator.shell.cluster import Kind, Object
from tests.shell.hamlet import job

from .village import Village
from .virtual import live

DEATHS = [(), (20.0,), (10.0, 25.0)]
"""Seconds after the beginning at which the leader of that moment dies; the next one leads ten seconds later."""
RUNG_SECONDS = 60.0
HANG_SECONDS = 45.0
ASKED_SECONDS = 5.0  # where the ranks stand: these stand-ins do not know
LOOKS = 3.0  # how late a pass may be
OPERATOR_DIES = pytest.mark.parametrize("deaths", DEATHS, ids=["never", "once", "twice"])


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Restarts are told; nobody reads it."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


async def leaders_die(village: Village, deaths: tuple[float, ...]) -> None:
    began = village.clock.monotonic()
    for at in deaths:
        await asyncio.sleep(began + at - village.clock.monotonic())
        leader = village.operators.leader()
        assert leader is not None, f"nobody leads after {at:g} s"
        leader.life.die()


async def slow_to_the_barrier(deaths: tuple[float, ...]) -> Object:
    """A rank dies, another node never has its ranks stopped; the status once its rung was given up."""
    async with Village() as village:
        village.program.total_steps = 400
        await village.cluster.create(Kind.JOB, "default", job(nodes=3))
        await village.until("step 3", lambda _: village.program.step >= 3)
        village.agent_of(2).dawdles = True
        village.agent_of(1).rank_ends(signal=9)
        await village.until("the next round", lambda seen: seen["round"] == 2)
        await leaders_die(village, deaths)
        given_up = await village.until("the next rung", lambda seen: seen["round"] == 3)
        assert village.operators.lives == 1 + len(deaths)
        await village.until("steps", lambda seen: village.program.round == 3 and village.program.stepping)
        return given_up


def seconds(later: str, earlier: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


@OPERATOR_DIES
def test_a_rung_ends_at_its_deadline_whoever_led_meanwhile(deaths: tuple[float, ...]) -> None:
    status = live(slow_to_the_barrier(deaths))
    (incident,) = status["incidents"]
    assert (incident["rung"], status["restarts"]["total"]) == ("Swap", 1)
    stood = seconds(status["roundTime"], incident["startTime"])
    assert RUNG_SECONDS <= stood < RUNG_SECONDS + LOOKS


async def hung(deaths: tuple[float, ...]) -> Object:
    """No step is made any more; the status once steps are made again."""
    async with Village() as village:
        village.program.total_steps = 400
        await village.cluster.create(Kind.JOB, "default", job(nodes=2))
        await village.until("step 20", lambda _: village.program.step >= 20)
        village.program.hung = 1
        await leaders_die(village, deaths)
        await village.until(
            "new steps", lambda seen: village.program.round == 2 and village.program.step > 22
        )
        return await village.until("the account", lambda seen: "resolvedTime" in seen["incidents"][0])


@OPERATOR_DIES
def test_a_hang_is_one_after_its_limit_and_booked_once_whoever_led_meanwhile(
    deaths: tuple[float, ...],
) -> None:
    status = live(hung(deaths))
    (incident,) = status["incidents"]
    assert (incident["class"], status["restarts"]["total"]) == ("Hang", 1)
    limit = HANG_SECONDS + ASKED_SECONDS
    found = seconds(status["roundTime"], incident["startTime"])
    assert limit <= found < limit + LOOKS
    assert incident["stageSeconds"]["detection"] == pytest.approx(found, abs=0.1)
    assert status["ledger"]["lostSeconds"]["detection"] == pytest.approx(found, abs=0.1)
