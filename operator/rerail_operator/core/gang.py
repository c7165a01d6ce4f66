"""Who fills which node rank: pods and agents of a job, seen as seats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rerail_api.contract import AgentState

from .world import Agent, Pod, PodPhase, World

FEW = 3
FEW_OF = 20


@dataclass(frozen=True, slots=True)
class Seat:
    """One node rank, the newest pod that was made for it, and that pod's agent."""

    node_rank: int
    pod: Pod | None = None
    agent: Agent | None = None
    older: tuple[Pod, ...] = ()
    condemned: bool = False  # the pod is alive, but the round was opened to be rid of it

    @property
    def filled(self) -> bool:
        return self.pod is not None and self.pod.alive and not self.condemned

    def at(self, state: AgentState, round_: int) -> bool:
        """Whether the seat's agent is connected and in that state of that round."""
        agent = self.agent
        return (
            self.filled
            and agent is not None
            and agent.connected
            and agent.round == round_
            and agent.state is state
        )


def seats(world: World, num_nodes: int) -> tuple[Seat, ...]:
    """One seat per node rank, 0 to num_nodes - 1; for a node rank the highest since-round wins."""
    by_rank: dict[int, list[Pod]] = {rank: [] for rank in range(num_nodes)}
    for pod in world.pods:
        if pod.node_rank in by_rank:
            by_rank[pod.node_rank].append(pod)
    return tuple(_seat(rank, pods, world) for rank, pods in by_rank.items())


def _seat(rank: int, pods: Sequence[Pod], world: World) -> Seat:
    if not pods:
        return Seat(rank)
    if len(pods) == 1:
        return Seat(rank, pods[0], world.agents.get(pods[0].uid))
    ordered = sorted(pods, key=lambda p: (p.since_round, p.birth_round, p.name))
    newest = ordered[-1]
    return Seat(rank, newest, world.agents.get(newest.uid), tuple(ordered[:-1]))


def more_than_few(count: int, size: int) -> bool:
    """Whether so many of a gang are silent or late at once that no single node or pod is to blame."""
    return count > max(FEW, size // FEW_OF)


def all_bound(taken: Iterable[Seat]) -> bool:
    """Whether every node rank has a living pod on its node: from there on only the program can be late."""
    return all(seat.filled and seat.pod is not None and seat.pod.bound for seat in taken)


def leftovers(world: World, taken: Iterable[Seat]) -> tuple[Pod, ...]:
    """Pods that hold no seat and are not on their way out: superseded, or of a larger gang of before.

    Spares are none of them: `spares.py` looks after those.
    """
    kept = {seat.pod.uid for seat in taken if seat.pod is not None}
    return _by_name(pod for pod in world.pods if pod.uid not in kept and not pod.deleting and not pod.spare)


def may_still_run(world: World) -> tuple[Pod, ...]:
    """Pods whose processes can still be alive: not ended, and not on a node that is gone for good."""
    return _by_name(pod for pod in world.pods if not pod.ended and _node_is_there(pod, world))


def _by_name(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """In an order of their own: a plan must not depend on the order in which pods were seen."""
    return tuple(sorted(pods, key=lambda pod: (pod.name, pod.uid)))


def _node_is_there(pod: Pod, world: World) -> bool:
    if not pod.bound:
        return pod.phase is not PodPhase.UNKNOWN and not pod.deleting
    node = world.nodes.get(pod.node)
    return node is not None and node.ready is True
