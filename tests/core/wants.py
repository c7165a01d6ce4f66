"""Plans in words, and what a sentence of a table wants of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rerail_operator.core.names import pod_name
from rerail_operator.core.plan import (
    Action,
    AskStacks,
    CreatePod,
    DeleteGang,
    DeleteJob,
    DeletePod,
    DryRunPod,
    FreezeTemplate,
    OrderFinish,
    OrderJoin,
    OrderRun,
    Plan,
    PromoteSpare,
)
from rerail_operator.core.world import SPARE

from .builders import UID, Scene


def in_words(action: Action) -> str:
    """An action as one short sentence: what the tables compare."""
    match action:
        case CreatePod(name, node, rank, slot, round_):
            assert name == pod_name("gpt", UID, round_, slot)
            who = (
                f"spare {slot}" if rank == SPARE else f"{rank}" + (f" as slot {slot}" if slot != rank else "")
            )
            return f"create {who} on {node} in round {round_}"
        case PromoteSpare(_, uid, _, rank, round_):
            return f"promote {uid} to {rank} in round {round_}"
        case DeletePod(name, uid, grace_seconds=grace):
            return f"delete {uid}" + (f" within {grace} s" if grace is not None else "")
        case DeleteGang():
            return "delete the gang"
        case FreezeTemplate():
            return "freeze the template"
        case DryRunPod(node):
            return f"dry run on {node}"
        case OrderJoin(uids, round_):
            return f"join {' '.join(uids)} to round {round_}"
        case OrderRun(releases, round_):
            ranks = " ".join(f"{uid}={r.node_rank}" for uid, r in sorted(releases.items()))
            first = next(iter(releases.values()))
            return f"run {ranks} of round {round_} at {first.master_addr}:{first.master_port}"
        case AskStacks(uids, round_, step):
            return f"ask {' '.join(uids)} where they stand after step {step} of round {round_}"
        case OrderFinish(uids, code, _):
            return f"finish {' '.join(uids)} with {code}"
        case DeleteJob():
            return "delete the job"
    raise AssertionError(action)


@dataclass(frozen=True)
class Want:
    """What a sentence says of a plan. Actions and intent are always compared, the rest where it is named."""

    reason: str | None
    actions: tuple[str, ...] = ()
    intent: bool = False
    phase: str | None = None
    says: str = ""  # part of the message
    round: int | None = None
    status: Mapping[str, Any] = field(default_factory=dict)  # dotted paths of the status
    true: tuple[str, ...] | None = None  # the conditions that are True
    within: float | None = None  # looks again after at most so many seconds


def check(scene: Scene, want: Want) -> Plan:
    """Assert that the scene's plan is what the sentence wants."""
    plan = scene.plan()
    status = plan.status
    assert (status.reason if status is not None else None) == want.reason, plan.because
    assert tuple(map(in_words, plan.actions)) == want.actions
    assert plan.intent is want.intent
    if status is None:
        return plan
    if want.phase is not None:
        assert status.phase == want.phase
    assert want.says in status.message
    if want.round is not None:
        assert status.round == want.round
    for path, value in want.status.items():
        assert _at(status, path) == value, path
    if want.true is not None:
        assert tuple(c.type.value for c in status.conditions if c.status == "True") == want.true
    if want.within is not None:
        assert plan.requeue_after is not None
        assert plan.requeue_after.total_seconds() <= want.within
    return plan


def _at(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = thing[int(part)] if part.lstrip("-").isdigit() else getattr(thing, part)
    return thing
