"""Who starts next: one serial pass over all waiting jobs, oldest first.

Each gang that finds its place takes its resources before the next is looked at, so two jobs never count on
the same ones and never hold half each. A job that cannot start reserves nothing: younger ones may pass it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from .placement import claimed, place_in
from .survey import NAMES_SHOWN, NEVER_FITS, GangRequest, Survey, survey
from .world import Node, Nodes, Placement, Refusal

WAITING_FOR_OLDER_JOB = "WaitingForOlderJob"
WAITING_FOR_SPARES = "WaitingForSpares"
CLUSTER_SETTLING = "ClusterSettling"


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits for admission."""

    uid: str
    namespace: str
    name: str
    created: datetime
    request: GangRequest

    @property
    def turn(self) -> tuple[datetime, str, str, str]:
        return (self.created, self.namespace, self.name, self.uid)


def plan_admissions(
    queue: Sequence[Queued], nodes: Nodes, settled: bool
) -> Mapping[str, Placement | Refusal]:
    """The answer to every waiting job, by UID.

    `settled` False: pods of admitted jobs are still being placed or not all is known yet; nobody is admitted.
    """
    in_turn = sorted(queue, key=lambda job: job.turn)
    if not settled:
        return {
            job.uid: Refusal(
                CLUSTER_SETTLING,
                f"{_ordinal(number)} in the queue: waiting until the pods of admitted jobs are accounted for",
            )
            for number, job in enumerate(in_turn, start=1)
        }
    ground = _Ground(nodes)
    offers: dict[str, Placement | Refusal] = {}
    waiting = 0
    for job in in_turn:
        offer = ground.offer(job)
        if isinstance(offer, Refusal) and offer.reason != NEVER_FITS:
            waiting += 1
            offer = replace(offer, message=f"{_ordinal(waiting)} in the queue: {offer.message}")
        offers[job.uid] = offer
    return offers


class _Ground:
    """The nodes as they are left by those placed so far; one survey per kind of request."""

    def __init__(self, nodes: Nodes) -> None:
        self._seen = nodes
        self._changed: dict[str, Node] = {}
        self._nodes = dict(nodes.by_name)
        self._taken_by: list[Queued] = []
        self._surveys: dict[object, Survey] = {}
        self._before: dict[object, int] = {}
        self._refusals: dict[tuple[object, int], Refusal] = {}

    def offer(self, job: Queued) -> Placement | Refusal:
        """A place for the job, which is then taken; or why not."""
        request = job.request
        known = (request.shape, request.num_nodes)
        if known in self._refusals:
            # Within a pass room only shrinks, so what was refused since the last claim stays refused.
            return self._refusals[known]
        offer = place_in(self._survey(request), request.num_nodes)
        if isinstance(offer, Placement):
            self._claim(job, offer)
            return offer
        if offer.reason != NEVER_FITS and self._before[request.shape] >= request.num_nodes:
            offer = Refusal(WAITING_FOR_OLDER_JOB, f"{offer.message}; {self._older()} first")
        self._refusals[known] = offer
        return offer

    def _older(self) -> str:
        names = [f"{each.namespace}/{each.name}" for each in self._taken_by]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return f"{', '.join(names[:NAMES_SHOWN])}{more} {'starts' if len(names) == 1 else 'start'}"

    def _survey(self, request: GangRequest) -> Survey:
        found = self._surveys.get(request.shape)
        if found is None:
            found = survey(request, self._seen)
            self._before[request.shape] = len(found.fitting_for(len(found.nodes)))
            found = self._surveys[request.shape] = found.reviewed(self._changed.values())
        return found

    def _claim(self, job: Queued, placement: Placement) -> None:
        changed = claimed(Nodes(self._nodes), placement, job.request.resources)
        self._taken_by.append(job)
        for node in changed:
            self._nodes[node.name] = self._changed[node.name] = node
        for shape, found in self._surveys.items():
            self._surveys[shape] = found.reviewed(changed)
        self._refusals.clear()


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
