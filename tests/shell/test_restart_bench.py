"""The bench of restarts in place, at a size that takes seconds: it measures what it says it measures."""

import pytest

from bench import restart_in_place
from bench.crowd import Wish as CrowdWish
from bench.restart_in_place import GOAL_REQUESTS, STAGES, Wish, measure

AGENTS = 20


async def test_restarts_in_place_are_measured_and_cost_a_handful_of_requests() -> None:
    told: list[str] = []
    found = await measure(Wish(AGENTS, restarts=1, everybody=1, beat_seconds=0.5), told.append)
    assert found["connections"] == AGENTS and found["connections_lost"] == 0
    one, everybody = found["restarts"]["one"][0], found["restarts"]["everybody"][0]
    for restart in (one, everybody):
        assert set(restart["stages"]) == set(STAGES) and min(restart["stages"].values()) >= 0
        assert restart["seconds"] == pytest.approx(sum(restart["stages"].values()), abs=0.01)
        assert sum(restart["requests"].values()) <= GOAL_REQUESTS
        assert not any("Pod" in request for request in restart["requests"]), "no pod is touched"
    assert one["stages"]["detection"] >= 1.0, "evidence is collected for a second"
    assert everybody["stages"]["detection"] < 1.0, "all have told theirs: there is nothing to wait for"
    assert any(line.startswith("  heartbeat") for line in told)


async def test_an_agent_that_is_lost_ends_the_bench_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_in_place, "LOST_SECONDS", 1.0)
    async with restart_in_place._bench(Wish(4)) as bench:
        await bench._until(lambda: all(crowd.connected for crowd in bench._crowds), "all agents connected")
        await bench._until_running(1)
        await bench._crowds[0].ask(CrowdWish(do="leave", node_rank=3))
        with pytest.raises(RuntimeError, match="node rank 3 was lost and is not back after 1 s"):
            await bench._until(lambda: bench._all_released(2), "all agents told to run round 2")
