"""One pass in words: what was seen, what was decided, and why. For `rerail explain`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from .plan import Action, CreatePod, OrderRun, Plan
from .world import Placement, Refusal, World

MAX_CHANGES = 40


def explain(world: World, plan: Plan, now: datetime) -> str:
    """The pass as lines for people. Names every action and every change of the status."""
    parts = [_seen(world, now), _decided(plan), *_actions(plan), *_notes(plan), *_changes(world, plan)]
    if plan.requeue_after is not None:
        parts.append(f"looks again in {plan.requeue_after.total_seconds():g} s, or when something changes")
    else:
        parts.append("looks again when something changes")
    return "\n".join(parts)


def _seen(world: World, now: datetime) -> str:
    job = world.job
    name = (
        f"{job.metadata.namespace}/{job.metadata.name}" if job else f"job {world.uid}, whose object is gone"
    )
    lines = [f"{name} at {now:%Y-%m-%d %H:%M:%S} UTC"]
    if world.invalid:
        lines.append(f"  the stored object cannot be read: {world.invalid}")
    if job:
        status = job.status
        state = f"{status.phase or 'none yet'} {status.reason}".rstrip()
        lines.append(f"  status  {state}, round {status.round}")
    lines.append(f"  pods    {_counted(_pod_state(world))}")
    lines.append(
        f"  agents  {_counted(f'{a.state.value} in round {a.round}' for a in world.agents.values())}"
    )
    ready = {True: "ready", False: "not ready", None: "silent"}
    lines.append(f"  nodes   {_counted(ready[node.ready] for node in world.nodes.by_name.values())}")
    match world.offer:
        case Placement(nodes):
            lines.append(
                f"  place   {', '.join(f'{rank} on {node}' for rank, node in sorted(nodes.items()))}"
            )
        case Refusal(reason, message):
            lines.append(f"  place   none: {reason}: {message}")
        case None:
            pass
    return "\n".join(lines)


def _pod_state(world: World) -> Iterator[str]:
    for pod in world.pods:
        yield f"{pod.phase.value}{', being deleted' if pod.deleting else ''}"


def _counted(words: Iterable[str]) -> str:
    found = Counter(words)
    if not found:
        return "none"
    return f"{found.total()}: " + "; ".join(f"{count} {word}" for word, count in sorted(found.items()))


def _decided(plan: Plan) -> str:
    status = plan.status
    what = f"{status.phase} {status.reason}: {status.message}" if status else "no status is written"
    lines = [f"decided: {what}"]
    if plan.because:
        lines.append(f"  because {plan.because}")
    if plan.intent:
        lines.append("  intent first: this status is written and read back; the next pass acts on it")
    return "\n".join(lines)


def _actions(plan: Plan) -> list[str]:
    if not plan.actions:
        return ["actions: none"]
    return [f"actions: {len(plan.actions)}", *(f"  {_action(action)}" for action in plan.actions)]


def _action(action: Action) -> str:
    match action:
        case CreatePod():
            return f"CreatePod {action.name} for node rank {action.node_rank} on {action.node}"
        case OrderRun():
            one = next(iter(action.releases.values()), None)
            at = f", meeting at {one.master_addr}:{one.master_port}" if one else ""
            return f"OrderRun {len(action.releases)} agents in round {action.round}{at}"
        case _:
            values = ((f.name, getattr(action, f.name)) for f in fields(action))
            words = [f"{name}={_short(value)}" for name, value in values if value not in (None, "", ())]
            return " ".join([type(action).__name__, *words])


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{len(value)}: {', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''}]"
    return str(value)


def _notes(plan: Plan) -> list[str]:
    return [f"tells: {note.level} {note.reason}: {note.message}" for note in plan.notes]


def _changes(world: World, plan: Plan) -> list[str]:
    if plan.status is None:
        return []
    before = dict(_flat(world.job.status.to_json())) if world.job else {}
    after = dict(_flat(plan.status.to_json()))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    # What lies on top says most: where not all is shown, the deepest is left out.
    names = sorted(changed, key=lambda name: (name.count("."), name))
    lines = [f"  {name}: {before.get(name, 'none')} -> {after.get(name, 'none')}" for name in names]
    if len(lines) > MAX_CHANGES:
        lines = [*lines[:MAX_CHANGES], f"  and {len(lines) - MAX_CHANGES} more"]
    return ["changes in the status: " + ("" if lines else "none"), *lines]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{_label(inner, index)}]")
    else:
        yield path, value


def _label(item: Any, index: int) -> str:
    """List entries are named by what tells them apart, so that a new one does not shift all others."""
    if isinstance(item, Mapping):
        return str(item.get("type") or item.get("number") or item.get("name") or index)
    return str(index)
