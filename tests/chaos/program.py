"""What the ranks of the village do: steps with a loss, checkpoints, and the end; and the fences that it watches over.

All ranks step together or none does. The loss of a step follows from its number, so a step that is made again
has to come out the same; a commit is for good.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from .agent import StandIn
from .invariants import Resumption

if TYPE_CHECKING:
    from .village import Village

STEP_SECONDS = 0.5
SAVE_EVERY = 4


def loss_of(step: int) -> float:
    return 8.0 / (1 + step)


class Program:
    """One job's ranks, wherever they run."""

    def __init__(self, village: "Village") -> None:
        self._village = village
        self.total_steps = 24
        self.committed = 0
        self.step = 0
        self.round = 0
        self.stepping = False
        self.hung = 0  # in this round no step is made any more
        self.losses: list[tuple[int, float]] = []
        self.resumptions: list[Resumption] = []
        self._ran: dict[tuple[int, int], str] = {}
        self._masters: dict[int, set[tuple[str, int]]] = {}

    def look(self) -> None:
        """At every change of an agent: nobody's place is taken twice, and no round is of two releases."""
        for agent in self._village.agents.values():
            if agent.state != "Running" or agent.release is None:
                continue
            seat = (agent.round, agent.release["node_rank"])
            assert self._ran.setdefault(seat, agent.pod_uid) == agent.pod_uid, f"two pods ran as {seat}"
            masters = self._masters.setdefault(agent.round, set())
            masters.add((agent.release["master_addr"], agent.release["master_port"]))
            assert len(masters) == 1, f"round {agent.round} ran under two releases: {masters}"

    async def run(self) -> None:
        """Steps, as long as the gang is whole."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            gang = self._gang()
            if gang is not None:
                self._step(gang)
            self.stepping = gang is not None and self.losses[-1:] == [(self.step, loss_of(self.step))]

    def _gang(self) -> list[StandIn] | None:
        """The agents that run one round together, if all of them do."""
        running = [
            a for a in self._village.agents.values() if a.state == "Running" and a.release and not a.frozen
        ]
        newest = max((a.round for a in running), default=0)
        gang = [a for a in running if a.round == newest]
        if not gang or gang[0].release is None:
            return None
        wanted = set(range(gang[0].release["num_nodes"]))
        return gang if {a.release["node_rank"] for a in gang if a.release} == wanted else None

    def _step(self, gang: list[StandIn]) -> None:
        round_ = gang[0].round
        if self.round != round_:
            assert round_ > self.round, f"round {round_} steps after round {self.round}"
            self.round, self.step = round_, self.committed
            self.resumptions.append(Resumption(round_, self.step, self.committed))
            return
        if self.hung == round_:
            return
        if self.step < self.total_steps:
            self.step += 1
            self.losses.append((self.step, loss_of(self.step)))
        if self.step % SAVE_EVERY == 0:
            self.committed = self.step
        first = next(a for a in gang if a.release and a.release["node_rank"] == 0)
        first.stepped(self._progress())
        if self.step >= self.total_steps:
            for agent in gang:
                agent.done()

    def _progress(self) -> dict[str, Any]:
        began = self.resumptions[-1].step
        return {
            "contract": 1, "phase": "train", "step": self.step, "total_steps": self.total_steps,
            "loss": loss_of(self.step), "checkpoint_step": self.committed or None, "resumed_from": began,
        }  # fmt: skip
