"""What the coordinator asks and hears of ranks besides their states: where they stand, how busy they are."""

from rerail_api.contract import AgentState
from rerail_operator.core.world import Place

from .agent_desk import Desk
from .waiting import until


async def test_where_ranks_stand_is_asked_and_heard_and_ages_become_instants(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    desk.coordinator.mention("uid-0", {"kind": "stacks", "round": 1, "step": 40})
    assert await client.receive("stacks") == {"kind": "stacks", "round": 1, "step": 40, "term": 1}
    place = {"ranks": [1], "state": "T", "where": "loop.py:1 f", "waits": "", "told": False, "of": "later"}
    told = {"progress": {"step": 40, "phase": "train"}, "progress_age": 1.0, "moved_age": 7.0}
    await client.say(round=1, **told, step_seconds_p99=0.25, stacks={"step": 40, "places": [place] * 17})
    await until(lambda: desk.seen() and desk.seen().stacks)
    seen = desk.seen()
    assert seen is not None and seen.stacks is not None and seen.progress is not None
    assert seen.stacks.places == (Place((1,), "T", "loop.py:1 f"),) * 16, "bounded, whatever a pod says"
    moved = seen.progress.moved_at
    assert moved is not None and 6.9 < (seen.last_seen - moved).total_seconds() < 7.1
    assert seen.progress.step_seconds_p99 == 0.25
    await client.say(**{**told, "moved_age": 9.0}, stacks=None)
    await until(lambda: desk.seen() and desk.seen().stacks is None)
    again = desk.seen()
    assert again is not None and again.progress is not None
    assert again.progress.moved_at == moved, "the same step told again keeps its instant"


async def test_nobody_is_asked_who_is_away(desk: Desk) -> None:
    desk.coordinator.mention("uid-0", {"kind": "stacks", "round": 1, "step": 40})
    client = await desk.agent()
    assert (await client.receive())["kind"] == "welcome"
    assert (await client.receive())["kind"] == "ping", "a question is not kept"


async def test_the_last_windows_of_ranks_that_tell_their_share_are_kept_for_the_round(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    for number in range(1, 8):
        await client.say(state="Running", round=1, busy={"0": [number, number / 10], "1": [1, 0.5]})
    await until(lambda: desk.coordinator.busy("uid-job", 1).get(0, (0,))[-1] == 0.7)
    assert desk.coordinator.busy("uid-job", 1) == {0: (0.3, 0.4, 0.5, 0.6, 0.7), 1: (0.5,)}
    assert desk.coordinator.busy("uid-job", 2) == desk.coordinator.busy("uid-other", 1) == {}
    await client.say(round=2, busy={"0": [1, 0.1]})
    await until(lambda: desk.seen().round == 2)
    assert desk.coordinator.busy("uid-job", 2) == {0: (0.1,)}, "other processes, other windows"


async def test_progress_is_cleaned_and_told_rarely(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    await client.say(state="Running", round=1)
    await until(lambda: desk.seen().state is AgentState.RUNNING)
    before = len(desk.changes)
    for step in range(1, 51):
        await client.say(progress={"step": step, "loss": 2.5, "odd": 1, "contract": 1}, progress_age=0.0)
    await until(lambda: desk.seen().progress and desk.seen().progress.step == 50)
    await until(lambda: len(desk.changes) > before)
    assert len(desk.changes) - before <= 3, "fifty lines within a moment are told in bursts of 0.1 s"
    progress = desk.seen().progress
    assert (progress.loss, progress.contract, progress.total_steps) == (2.5, True, None)


async def test_advice_goes_to_agents_that_are_there_and_what_they_have_is_seen(desk: Desk) -> None:
    client = await desk.agent()
    await client.receive("welcome")
    await until(lambda: desk.seen())
    assert desk.seen().advised is None  # an agent of the version before says nothing of it
    await client.say(checkpoint_seconds=0)
    await until(lambda: desk.seen().advised == 0)
    desk.coordinator.mention("uid-0", {"kind": "advice", "round": 3, "checkpoint_seconds": 118})
    desk.coordinator.mention("uid-of-nobody", {"kind": "advice", "round": 3})
    advice = await client.receive("advice")
    assert advice == {"kind": "advice", "term": 1, "round": 3, "checkpoint_seconds": 118}
    await client.say(checkpoint_seconds=118)
    await until(lambda: desk.seen().advised == 118)
