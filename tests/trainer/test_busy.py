"""What each rank tells of the time that it computes by itself."""

from statistics import median

from rerail_api.contract import clean_busy
from rerail_trainer.busy import WINDOW_SECONDS, WINDOW_STEPS, Busy, HostClock

from .gang import Yard
from .inside import SLOW_SECONDS


class Hand:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def steps(busy: Busy, clock: Hand, count: int, own: float, waiting: float) -> None:
    for _ in range(count):
        busy.begin()
        clock.time += own
        busy.end()
        clock.time += waiting


def test_a_window_is_ten_steps_and_two_seconds_of_what_was_not_waiting() -> None:
    clock, told = Hand(), []
    busy = Busy(lambda seconds, count: told.append((round(seconds, 6), count)), HostClock(clock), clock)
    steps(busy, clock, WINDOW_STEPS - 1, own=1.0, waiting=9.0)
    assert told == [], "time enough, too few steps"
    steps(busy, clock, 1, own=1.0, waiting=0.0)
    assert told == [(10.0, 10)]
    steps(busy, clock, 39, own=0.02, waiting=0.03)
    assert told[1:] == [], f"steps enough, less than {WINDOW_SECONDS} s"
    steps(busy, clock, 2, own=0.02, waiting=0.03)
    assert len(told) == 2
    assert abs(told[1][0] / told[1][1] - 0.02) < 1e-6


def test_every_rank_of_a_gang_tells_its_own_share_and_the_slow_one_stands_out(yard: Yard) -> None:
    gang = yard.run("--train.steps=60", ranks=2, inside="compute_slowly_on_rank_1")
    told = [window for line in gang.busy() if (window := clean_busy(line)) is not None]
    own = {rank: [seconds for teller, seconds in told if teller == rank] for rank in (0, 1)}
    assert len(own[0]) >= 4 and len(own[1]) >= 4
    assert min(own[1]) >= SLOW_SECONDS
    assert median(own[0]) < median(own[1]) - SLOW_SECONDS / 2, "who waits is not busy"


def test_a_rank_alone_has_nobody_to_tell_it_for(yard: Yard) -> None:
    assert yard.run("--train.steps=30", ranks=1).busy() == []
