"""A domain that falls as one: three or more nodes of a rack, block or zone lost within ten seconds.

It is one incident, not one per node, whenever the API server gets round to calling each of them not Ready;
the open incident counts them, so that the strike against its node is shared out.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from rerail_api.status import Incident, IncidentClass
from rerail_api.v1alpha1 import TrainingJob

from .outcome import Outcome
from .plan import Level, Note
from .reasons import Reason
from .strikes import DOMAIN_NODES, TOGETHER
from .topology import domain
from .world import Node, Pod, World

LEVEL_WORDS: Final = ("zone", "block", "rack")


def with_fallen(world: World, job: TrainingJob, outcome: Outcome) -> Outcome:
    """The outcome, its open node loss with the number of nodes that fell together, where that has grown."""
    incidents: tuple[Incident, ...] = outcome.changes.get("incidents", job.status.incidents)
    last = incidents[-1] if incidents else None
    if last is None or last.resolved_time is not None or last.class_ is not IncidentClass.NODE_LOSS:
        return outcome
    root = world.nodes.get(last.node or "")
    if root is None or last.start_time is None:
        return outcome
    count, where = _fallen_with(root, _lost(world, last.round, last.start_time))
    if count <= (last.nodes_lost or 0):
        return outcome
    counted = last.model_copy(update={"nodes_lost": count})
    words = (
        f"incident {last.number}: {count} nodes of {where} were lost within {TOGETHER.seconds} s, one event"
    )
    return replace(
        outcome,
        changes={**outcome.changes, "incidents": (*incidents[:-1], counted)},
        notes=(*outcome.notes, Note(Reason.DOMAIN_LOST, words, Level.WARNING)),
    )


def _lost(world: World, round_: int, at: datetime) -> list[Node]:
    """Nodes of the gang of that round that are not Ready and whose agents fell silent at about that time."""
    gone: dict[str, Node] = {}
    for pod in world.pods:
        node = world.nodes.get(pod.node)
        if node is not None and node.ready is not True and _fell_at(world, pod, round_, at):
            gone[node.name] = node
    return list(gone.values())


def _fell_at(world: World, pod: Pod, round_: int, at: datetime) -> bool:
    agent = world.agents.get(pod.uid)
    if not pod.bound or pod.since_round > round_ or agent is None or agent.connected:
        return False
    return abs(agent.last_seen - at) <= TOGETHER


def _fallen_with(root: Node, lost: list[Node]) -> tuple[int, str]:
    """How many nodes of the narrowest domain around `root` fell, and which domain; (0, "") for no domain."""
    place = domain(root)
    for level in range(len(place), 0, -1):
        if place[level - 1]:
            count = sum(1 for node in lost if domain(node)[:level] == place[:level])
            if count >= DOMAIN_NODES:
                return count, f"{LEVEL_WORDS[level - 1]} {place[level - 1]}"
    return 0, ""
