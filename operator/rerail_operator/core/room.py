"""Whose spares make room for whom: no job waits for nodes that only spares hold.

Looked at after the admission pass, one waiting job at a time: the first that could start, were some spares
not there, gets theirs. Until it has started no new spare is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .admission import WAITING_FOR_SPARES, Queued
from .placement import claimed
from .survey import NEVER_FITS, GangRequest, survey
from .world import Node, Nodes, Placement, Refusal, Resources


@dataclass(frozen=True, slots=True)
class HeldSpare:
    """A living spare as the admission pass sees it."""

    uid: str
    name: str
    job_uid: str
    job: str  # namespace/name
    node: str
    requests: Resources


@dataclass(frozen=True, slots=True)
class Need:
    """Nodes that a job needs and does not get: a waiting gang, or node ranks of one that holds the others."""

    job_uid: str
    request: GangRequest


@dataclass(frozen=True, slots=True)
class Room:
    """What spares have to do with those who wait."""

    called_in: frozenset[str] = frozenset()  # pod UIDs of spares to be given up
    for_job: str = ""  # UID of the job that they make room for
    why: str = ""  # in words for that job
    for_spares: bool = True  # whether new ones may be made


@dataclass(frozen=True, slots=True)
class Line:
    """Those who wait, and what the admission pass answered them."""

    queue: Sequence[Queued]
    answers: Mapping[str, Placement | Refusal]
    unplaceable: Sequence[Need] = ()  # of jobs that hold their other nodes; they come first


def room(line: Line, spares: Sequence[HeldSpare], nodes: Nodes) -> Room:
    """Which spares to give up for the first who waits and whom they can help.

    A job that is offered its place is about to take it: no spare is made until it has.
    """
    waiting, left = _refused(line, nodes)
    for need in (*line.unplaceable, *waiting):
        found = _for(need, [spare for spare in spares if spare.job_uid != need.job_uid], left)
        if found is not None:
            return found
    return Room(for_spares=not any(isinstance(answer, Placement) for answer in line.answers.values()))


def _for(need: Need, spares: Iterable[HeldSpare], nodes: Nodes) -> Room | None:
    """Enough of the spares for this need, the last ones by name first; None when even all are too few."""
    found = survey(need.request, nodes)
    before = {node.name for node in found.fitting_for(need.request.num_nodes)}
    short = need.request.num_nodes - len(before)
    if short <= 0:
        return Room(for_job=need.job_uid, for_spares=False)  # room is there already: leave it to this job
    by_node = {spare.node: spare for spare in spares if spare.node not in before}
    without = [_without(spare, nodes) for spare in by_node.values() if nodes.get(spare.node) is not None]
    found = found.reviewed(without)
    able = [by_node[node.name] for node in found.fitting() if node.name in by_node]
    if len(able) < short:
        return None
    given = sorted(able, key=lambda spare: (spare.job, spare.name), reverse=True)[:short]
    names = ", ".join(spare.name for spare in given[:3]) + (", ..." if len(given) > 3 else "")
    count = f"{len(given)} spare{'' if len(given) == 1 else 's'}"
    why = f"{count} of other jobs {'makes' if len(given) == 1 else 'make'} room: {names}"
    return Room(frozenset(spare.uid for spare in given), need.job_uid, why, for_spares=False)


def _without(spare: HeldSpare, nodes: Nodes) -> Node:
    node = nodes.by_name[spare.node]
    return replace(
        node, free={name: amount + spare.requests.get(name, 0) for name, amount in node.free.items()}
    )


def _refused(line: Line, nodes: Nodes) -> tuple[list[Need], Nodes]:
    """The waiting jobs that were refused, in turn, and the nodes as those that are admitted leave them."""
    needs: list[Need] = []
    taken = dict(nodes.by_name)
    for job in sorted(line.queue, key=lambda each: each.turn):
        answer = line.answers.get(job.uid)
        if isinstance(answer, Placement):
            taken |= {node.name: node for node in claimed(Nodes(taken), answer, job.request.resources)}
        elif isinstance(answer, Refusal) and answer.reason != NEVER_FITS:
            needs.append(Need(job.uid, job.request))
    return needs, Nodes(taken)


def with_room(answers: Mapping[str, Placement | Refusal], found: Room) -> Mapping[str, Placement | Refusal]:
    """The answers, the one to the job that spares make room for in those words."""
    if found.for_job not in answers or not found.called_in:
        return answers
    return {**answers, found.for_job: Refusal(WAITING_FOR_SPARES, found.why)}
