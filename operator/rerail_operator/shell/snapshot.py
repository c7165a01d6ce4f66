"""A world as a file: what `rerail run --snapshot` writes and `rerail explain` reads.

`{job, pods, nodes, agents, now, operator}`: job, pods and nodes as the API server shows them, agents by pod
UID in the words of `core.world.Agent`; `operator` holds what an operator knows besides and may be left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from rerail_api.base import rfc3339
from rerail_api.status import ConditionType
from rerail_api.v1alpha1 import InvalidJob, TrainingJob, parse_job
from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.placement import gang_request
from rerail_operator.core.waiting import avoided
from rerail_operator.core.world import Agent, Node, Nodes, Placement, Refusal, Rejection, World
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.observe import observe_node, observe_pod, pod_requests
from rerail_operator.shell.reading import Unreadable, tree_of
from rerail_operator.shell.settings import DEFAULT_ACCELERATORS


class BadSnapshot(ValueError):
    """A file that holds no world; the text says what is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A world and the time at which it was seen."""

    world: World
    now: datetime


def snapshot(world: World, pods: list[Object], nodes: list[Object], now: datetime) -> Object:
    """The file's content for a world whose pods and nodes are these."""
    known = {
        "templateFrozen": world.template_frozen,
        "dryRunPassed": world.dry_run_passed,
        "rejections": world.rejections,
        "leadingSince": world.leading_since,
        "claim": dict(world.claim.nodes) if world.claim else None,
        "memory": dict(world.memory),
        "accelerators": world.accelerators,
    }
    return {
        "now": rfc3339(now),
        "job": world.job.to_json() if world.job else None,
        "pods": pods,
        "nodes": nodes,
        "agents": msgspec.to_builtins(dict(world.agents)),
        "operator": msgspec.to_builtins(known),
    }


def write_snapshot(path: Path, content: Object) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_snapshot(path: Path) -> Scene:
    """Raises `BadSnapshot`."""
    try:
        raw = tree_of(path, "a file as `rerail run --snapshot` writes it")
    except Unreadable as error:
        raise BadSnapshot(str(error)) from None
    if not isinstance(raw, dict):
        raise BadSnapshot(f"{path}: holds no object; write job, pods, nodes, agents and now")
    try:
        return _scene(raw)
    except InvalidJob as error:
        raise BadSnapshot(f"{path}: job: {error}") from None
    except (msgspec.ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSnapshot(f"{path}: {error}") from None


def _scene(raw: Mapping[str, Any]) -> Scene:
    if unknown := raw.keys() - {"job", "pods", "nodes", "agents", "now", "operator"}:
        names = ", ".join(sorted(unknown))
        raise BadSnapshot(f"unknown key {names}; known: job, pods, nodes, agents, now, operator")
    now = _time(raw.get("now"))
    job = parse_job(raw["job"]) if raw.get("job") else None
    pods = tuple(pod for item in _items(raw.get("pods")) if (pod := observe_pod(item)) is not None)
    known = raw.get("operator") or {}
    bad = tuple(known.get("badNodeConditions") or ())
    nodes = _nodes(_items(raw.get("nodes")), _items(raw.get("pods")), bad)
    claim = known.get("claim")
    world = World(
        uid=job.metadata.uid if job else (pods[0].uid if pods else ""),
        job=job,
        pods=pods,
        agents=msgspec.convert(raw.get("agents") or {}, dict[str, Agent], strict=False),
        nodes=nodes,
        offer=_offer(job, nodes, now),
        template_frozen=bool(known.get("templateFrozen", True)),
        dry_run_passed=bool(known.get("dryRunPassed", True)),
        rejections=msgspec.convert(known.get("rejections") or (), tuple[Rejection, ...]),
        leading_since=msgspec.convert(known.get("leadingSince"), datetime | None),
        claim=Placement({int(rank): node for rank, node in claim.items()}) if claim else None,
        memory=msgspec.convert(known.get("memory") or {}, dict[str, datetime]),
        accelerators=tuple(known.get("accelerators") or DEFAULT_ACCELERATORS),
    )
    return Scene(world, now)


def _items(value: Any) -> list[Object]:
    """A list of objects; what `kubectl get -o yaml` prints is a List with items."""
    found = value.get("items", []) if isinstance(value, dict) else value or []
    if not isinstance(found, list):
        raise TypeError("pods and nodes are lists of objects, as printed by kubectl get -o yaml")
    return found


def _time(value: Any) -> datetime:
    if value is None:
        raise BadSnapshot("now is missing; write the time of the snapshot, as in now: 2026-11-23T10:00:00Z")
    # YAML reads an unquoted time by itself, and gives it without a zone where it is UTC.
    found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _nodes(nodes: list[Object], pods: list[Object], bad_conditions: tuple[str, ...]) -> Nodes:
    seen = {node.name: node for item in nodes if (node := observe_node(item, bad_conditions)) is not None}
    for pod in pods:
        name = (pod.get("spec") or {}).get("nodeName", "")
        if name in seen and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            seen[name] = _less(seen[name], pod)
    return Nodes(seen)


def _less(node: Node, pod: Object) -> Node:
    free = dict(node.free)
    for name, amount in pod_requests(pod).items():
        free[name] = free.get(name, 0) - amount
    return replace(node, free=free)


def _offer(job: TrainingJob | None, nodes: Nodes, now: datetime) -> Placement | Refusal | None:
    """What the admission pass would answer a job that stands alone in the line."""
    if job is None or job.status.is_true(ConditionType.ADMITTED) or job.spec.suspend:
        return None
    meta = job.metadata
    request = gang_request(job.spec.template, job.spec.num_nodes, avoided(job, now))
    queued = Queued(meta.uid, meta.namespace, meta.name, meta.creation_timestamp or now, request)
    return plan_admissions([queued], nodes, settled=True).get(meta.uid)
