"""The root was elsewhere: what is told late of another node of the gang, when a healthy peer was named.

Peers of a node that dies, of a device that fails and of a pod that is sent away end with codes of their own,
and their agents tell that at once; who watches nodes and devices takes his time.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from rerail_api.status import Incident, IncidentClass
from rerail_api.v1alpha1 import TrainingJob

from .devices import said_against
from .evidence import Fault, hold_if_ours, unfit
from .gang import Seat
from .taxonomy import Sign
from .world import Pod, World

AT_ONCE = timedelta(seconds=5)
"""How much later than the first fault the true root may be seen: an agent of a node that dies has often been
heard after the ranks of its peers ended."""
DEVICE_SOON = timedelta(minutes=2)
"""How long after a failure a device may be called bad for it: who watches devices looks once a minute."""

_INFRASTRUCTURE = frozenset({Sign.NODE_GONE, Sign.NODE_UNREACHABLE, Sign.POD_PREEMPTED, Sign.POD_DRAINED})
_VICTIMS = frozenset({IncidentClass.PROCESS_FAULT, IncidentClass.RENDEZVOUS_FAULT, IncidentClass.HANG})
_ABORTED = "SIGABRT"
"""How a program ends itself whose collective has failed; any other signal came from outside."""


def root_elsewhere(world: World, taken: tuple[Seat, ...], last: Incident, now: datetime) -> Fault | None:
    """What happened to another node of the gang at about the time of an incident that this explains."""
    if last.class_ not in _VICTIMS or last.signal not in (None, _ABORTED) or last.start_time is None:
        return None
    if last.node is None:
        return None  # nobody was named who could have been a victim
    peers = [pod for pod in world.pods if _is_peer(pod, last) and _has_a_story(world, pod)]
    their_seats = (Seat(pod.node_rank, pod, world.agents.get(pod.uid)) for pod in peers)
    faults = [fault for seat in their_seats if (fault := unfit(world, seat, now)) is not None]
    found = [
        fault
        for fault in hold_if_ours(world, faults, taken, now)
        if fault.sign in _INFRASTRUCTURE and fault.at <= last.start_time + AT_ONCE
    ]
    if not found and now - last.start_time <= DEVICE_SOON:
        found = list(_devices(world, peers, last, now))
    return min(found, key=lambda f: (f.cause, f.at, f.node_rank), default=None)


def known_devices(world: World, job: TrainingJob, now: datetime) -> dict[str, datetime]:
    """Whose devices were called bad already when an incident was new, to be remembered while it is open: what
    trained for hours in spite of it is not the root now. A new leader does not know, and blames none of them.
    """
    last = job.status.incidents[-1] if job.status.incidents else None
    if last is None or last.resolved_time is not None:
        return {}
    mark = _mark(last)
    if mark in world.memory:
        return {key: at for key, at in world.memory.items() if key.startswith(mark)}
    bad = [pod for pod in world.pods if said_against(world.nodes, pod, pod.node)]
    return {mark: now} | {f"{mark}{pod.uid}": now for pod in bad}


def _mark(last: Incident) -> str:
    return f"devices/{last.number}/"


def _is_peer(pod: Pod, last: Incident) -> bool:
    """Whether it was of the gang whose round the incident ended, and on another node than the one named."""
    return not pod.spare and pod.since_round <= last.round and pod.bound and pod.node != last.node


def _has_a_story(world: World, pod: Pod) -> bool:
    """Whether anything is told of it; of thousands of pods nearly all are well."""
    agent, node = world.agents.get(pod.uid), world.nodes.get(pod.node)
    silent = agent is None or not agent.connected
    return silent or bool(pod.disruption or pod.bad_device) or node is None or bool(node.trouble)


def _devices(world: World, peers: Iterable[Pod], last: Incident, now: datetime) -> Iterable[Fault]:
    mark = _mark(last)
    if mark not in world.memory:
        return
    for pod in peers:
        why = said_against(world.nodes, pod, pod.node)
        if why and f"{mark}{pod.uid}" not in world.memory:
            yield Fault(Sign.DEVICE_BAD, pod.node_rank, now, why, pod)
