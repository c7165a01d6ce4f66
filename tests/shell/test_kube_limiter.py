"""The limiter: opens slowly, closes fast, holds back when told, and loses no place."""

import asyncio
from collections.abc import Iterator

import pytest

from rerail_operator.shell.kube.limiter import Limiter, Limits
from tests.shell.hand_clock import HandClock
from tests.shell.waiting import until


@pytest.fixture
def clock() -> Iterator[HandClock]:
    yield HandClock()


def test_quick_replies_open_the_window_to_its_limit_and_no_further(clock: HandClock) -> None:
    limiter = Limiter(Limits(start=8, highest=12), clock.monotonic)
    for _ in range(200):
        limiter.replied(0.01)
    assert limiter.window == 12


def test_a_burst_of_429_halves_the_window_once(clock: HandClock) -> None:
    limiter = Limiter(Limits(start=64), clock.monotonic)
    for _ in range(50):
        limiter.throttled(1.0)
    assert limiter.window == 32
    clock.advance(1.0)
    limiter.throttled(1.0)
    assert limiter.window == 16
    for _ in range(10):
        clock.advance(1.0)
        limiter.throttled(1.0)
    assert limiter.window == 8


def test_slow_replies_close_the_window_gently(clock: HandClock) -> None:
    limiter = Limiter(Limits(start=50, slow_seconds=2.0), clock.monotonic)
    limiter.replied(2.5)
    assert limiter.window == 40


async def test_no_more_than_the_window_run_at_once_and_all_get_their_turn(clock: HandClock) -> None:
    limiter = Limiter(Limits(lowest=3, start=3, highest=3), clock.monotonic)
    most, done = 0, []

    async def work(number: int) -> None:
        nonlocal most
        async with limiter.slot():
            most = max(most, limiter.running)
            await asyncio.sleep(0)
            done.append(number)

    await asyncio.gather(*(work(number) for number in range(20)))
    assert most == 3 and done == list(range(20)) and limiter.running == 0


async def test_nothing_starts_while_the_server_wants_peace() -> None:
    limiter = Limiter(Limits(start=8))
    limiter.throttled(0.3)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(5), limiter.slot():
        assert loop.time() - began >= 0.25


async def test_one_who_gives_up_waiting_leaves_no_hole(clock: HandClock) -> None:
    limiter = Limiter(Limits(lowest=1, start=1, highest=1), clock.monotonic)
    entered = asyncio.Event()

    async def hold() -> None:
        async with limiter.slot():
            entered.set()
            await asyncio.sleep(3600)

    async def wait() -> None:
        async with limiter.slot():
            pass

    holder, waiter = asyncio.create_task(hold()), asyncio.create_task(wait())
    await entered.wait()
    last = asyncio.create_task(wait())
    await asyncio.sleep(0)
    # The waiter is let in and gives up within the same turn of the loop.
    holder.cancel()
    await until(lambda: holder.done())
    waiter.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    async with asyncio.timeout(5):
        await last
    assert limiter.running == 0
