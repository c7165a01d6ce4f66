"""The queue: one entry, one flight, delayed wishes, back-off."""

import asyncio

import pytest

from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.workqueue import Backoff, WorkQueue

from .hand_clock import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def queue(clock: HandClock) -> WorkQueue[str]:
    return WorkQueue(clock, Backoff(first=1.0, factor=2.0, cap=5.0))


def test_a_key_added_twice_is_taken_once_oldest_first(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [queue.take(), queue.take(), queue.take()] == ["a", "b", None]


def test_a_key_added_in_flight_waits_for_its_flight_to_end(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"
    queue.done("a")
    assert queue.take() is None


def test_of_several_delayed_wishes_the_earliest_counts_once(queue: WorkQueue[str], clock: HandClock) -> None:
    for seconds in (10, 3, 7):
        queue.add_after("a", seconds)
    clock.advance(2.9)
    assert queue.take() is None
    clock.advance(0.1)
    assert queue.take() == "a"
    queue.done("a")
    clock.advance(100)
    assert queue.take() is None


def test_taking_a_key_drops_its_delayed_wish(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add_after("a", 3)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    clock.advance(10)
    assert queue.take() is None


def test_a_wish_made_during_the_flight_is_kept(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add_after("a", 3)
    clock.advance(5)
    assert queue.take() is None, "due, but still in flight"
    queue.done("a")
    assert queue.take() == "a"


def test_back_off_grows_to_its_cap_and_forget_resets_it(queue: WorkQueue[str], clock: HandClock) -> None:
    delays = []
    queue.add("a")
    for _ in range(5):
        assert queue.take() == "a"
        delays.append(queue.retry("a"))
        clock.advance(delays[-1])
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert queue.failures("a") == 5
    assert queue.take() == "a"
    queue.forget("a")
    assert queue.retry("a") == 1.0


def test_add_does_not_cut_a_back_off_short(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.retry("a", at_least=3.0)
    queue.add("a")
    clock.advance(2.9)
    assert queue.take() is None
    clock.advance(0.1)
    assert queue.take() == "a"


def test_a_key_that_rests_gathers_its_wishes_until_then(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.forget("a")
    queue.rest("a", 0.4, urgent=1.0)
    queue.done("a")
    queue.add_after("a", 0.1)
    clock.advance(0.3)
    queue.add("a")
    assert queue.take() is None
    clock.advance(0.2)
    assert [queue.take(), queue.take()] == ["a", None]
    queue.forget("a")
    queue.done("a")
    queue.add("a")
    assert queue.take() == "a"


@pytest.mark.parametrize("when", ["while it rests", "in flight"])
def test_an_urgent_wish_cuts_a_rest_short_and_no_other_does(
    queue: WorkQueue[str], clock: HandClock, when: str
) -> None:
    queue.add("a")
    queue.take()
    queue.add("a", urgent=when == "in flight")
    queue.add("a")
    queue.forget("a")
    queue.rest("a", 3.0, urgent=1.0)
    queue.done("a")
    if when == "while it rests":
        clock.advance(0.9)
        queue.add("a", urgent=True)
        clock.advance(0.2)
    else:
        clock.advance(0.9)
        assert queue.take() is None
        clock.advance(0.2)
    assert [queue.take(), queue.take()] == ["a", None]
    queue.forget("a")
    queue.rest("a", 3.0, urgent=1.0)
    queue.done("a")
    queue.add("a")
    clock.advance(2.9)
    assert queue.take() is None
    clock.advance(0.2)
    assert queue.take() == "a"


def test_an_urgent_wish_that_comes_late_in_a_rest_is_served_at_once(
    queue: WorkQueue[str], clock: HandClock
) -> None:
    queue.add("a")
    queue.take()
    queue.rest("a", 3.0, urgent=1.0)
    queue.done("a")
    queue.add("a")
    clock.advance(2.0)
    assert queue.take() is None
    queue.add("a", urgent=True)
    assert queue.take() == "a"


def test_an_urgent_wish_does_not_cut_a_back_off_short(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add("a")
    queue.take()
    queue.rest("a", 3.0, urgent=0.1)
    queue.done("a")
    queue.add("a", urgent=True)
    clock.advance(0.2)
    assert queue.take() == "a"
    queue.retry("a", at_least=4.0)
    queue.add("a", urgent=True)
    clock.advance(3.9)
    assert queue.take() is None
    clock.advance(0.2)
    assert queue.take() == "a"


def test_one_key_backing_off_does_not_hold_others(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.take()
    queue.retry("a")
    queue.add("b")
    assert queue.take() == "b"


async def test_get_waits_for_add_and_for_delays_and_survives_cancelled_waiters() -> None:
    queue: WorkQueue[str] = WorkQueue(SystemClock())
    waiters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    queue.add("a")
    queue.add_after("b", 0.02)
    assert set(await asyncio.wait_for(asyncio.gather(*waiters[1:]), 5)) == {"a", "b"}
    assert waiters[0].cancelled()


async def test_a_hundred_keys_over_four_workers_never_fly_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue(SystemClock())
    flying: set[int] = set()
    passes = dict.fromkeys(range(100), 0)

    async def worker() -> None:
        while True:
            key = await queue.get()
            assert key not in flying
            flying.add(key)
            await asyncio.sleep(0)
            passes[key] += 1
            if passes[key] == 1:
                queue.add(key)  # while in flight: exactly one more pass
            flying.discard(key)
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(4)]
    for key in passes:
        queue.add(key)
    async with asyncio.timeout(10):
        while any(count < 2 for count in passes.values()):
            await asyncio.sleep(0.01)
    for task in workers:
        task.cancel()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    assert set(passes.values()) == {2}
