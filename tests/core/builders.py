"""Immutable scenes for tables of sentences: a job, its pods, agents and nodes, told in a few words each.

    running(3).exits(1, code=1).later(2).plan()

Every method gives a new scene. Names are short on purpose: job `gpt`, nodes `n0`, `n1`, ..., pod UIDs
`p<round>-<rank>`. Times count from `NOON`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rerail_api.contract import AgentState
from rerail_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    Incident,
    IncidentClass,
    Ledger,
    Stage,
    TrainingJobStatus,
)
from rerail_api.v1alpha1 import TrainingJob
from rerail_operator.core.decide import decide
from rerail_operator.core.names import pod_name
from rerail_operator.core.plan import Plan
from rerail_operator.core.queueing import shape_hash
from rerail_operator.core.world import (
    Agent,
    Exit,
    Node,
    Nodes,
    Placement,
    Pod,
    PodPhase,
    Progress,
    Refusal,
    Rejection,
    Release,
    Termination,
    World,
)

from . import ground

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
UID = "c0ffee12-0000-4000-8000-000000000000"
Conditions = Mapping[ConditionType, tuple[bool, str]]


def after(seconds: float) -> datetime:
    """A point in time, counted from noon."""
    return NOON + timedelta(seconds=seconds)


def a_condition(kind: ConditionType, value: bool, reason: str, at: float = 0) -> Condition:
    return Condition(
        type=kind,
        status=ConditionStatus.TRUE if value else ConditionStatus.FALSE,
        reason=reason,
        last_transition_time=after(at),
    )


def an_incident(number: int = 1, *, round_: int = 1, at: float = 0, **fields: Any) -> Incident:
    known: dict[str, Any] = {"class_": IncidentClass.PROCESS_FAULT, "charged": True, "start_time": after(at)}
    return Incident(number=number, round=round_, **{**known, **fields})


@dataclass(frozen=True)
class Scene:
    """What one pass sees, and when."""

    job: TrainingJob
    pods: tuple[Pod, ...] = ()
    agents: Mapping[str, Agent] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)  # other fields of World
    now: datetime = NOON

    # -- the job

    def spec(self, **fields: Any) -> "Scene":
        return self._with_job(spec=self.job.spec.model_copy(update=fields))

    def policy(self, **fields: Any) -> "Scene":
        policy = type(self.job.spec.failure_policy).model_validate(fields)
        return self.spec(failure_policy=policy)

    def status(self, **fields: Any) -> "Scene":
        return self._with_job(status=self.job.status.model_copy(update=fields))

    def metadata(self, **fields: Any) -> "Scene":
        return self._with_job(metadata=self.job.metadata.model_copy(update=fields))

    def condition(self, kind: ConditionType, value: bool, reason: str, at: float = 0) -> "Scene":
        rest = tuple(c for c in self.job.status.conditions if c.type is not kind)
        return self.status(conditions=(*rest, a_condition(kind, value, reason, at)))

    def incident(self, *incidents: Incident) -> "Scene":
        restarts = self.job.status.restarts.model_copy(update={"total": len(incidents)})
        return self.status(incidents=incidents, restarts=restarts)

    def _with_job(self, **fields: Any) -> "Scene":
        return replace(self, job=self.job.model_copy(update=fields))

    # -- what is around it

    def see(self, **fields: Any) -> "Scene":
        """Other fields of World: offer, memory, rejections, leading_since, ..."""
        return replace(self, seen={**self.seen, **fields})

    def offered(self, *nodes: str) -> "Scene":
        return self.see(offer=Placement(dict(enumerate(nodes))))

    def refused(self, reason: str, message: str) -> "Scene":
        return self.see(offer=Refusal(reason, message))

    def rejected(self, action: str, message: str, *, at: float = 0, **fields: Any) -> "Scene":
        known = self.seen.get("rejections", ())
        return self.see(rejections=(*known, Rejection(action, message, after(at), **fields)))

    def node(self, name: str, **fields: Any) -> "Scene":
        known = self.nodes.get(name) or ground.a_node(name)
        return replace(self, nodes={**self.nodes, name: replace(known, **fields)})

    def full(self, name: str) -> "Scene":
        """A node that somebody else has filled."""
        return replace(self, nodes={**self.nodes, name: ground.a_node(name, free_gpus=0)})

    def without_node(self, name: str) -> "Scene":
        return replace(self, nodes={n: node for n, node in self.nodes.items() if n != name})

    # -- pods and agents, by node rank (the newest pod of that rank)

    def of(self, rank: int) -> Pod:
        found = [pod for pod in self.pods if pod.node_rank == rank]
        return max(found, key=lambda pod: pod.since_round)

    def agent_of(self, rank: int) -> Agent:
        return self.agents[self.of(rank).uid]

    def plus(self, pod: Pod) -> "Scene":
        return replace(self, pods=(*self.pods, pod))

    def pod(self, rank: int, **fields: Any) -> "Scene":
        chosen = self.of(rank)
        return replace(self, pods=tuple(replace(p, **fields) if p is chosen else p for p in self.pods))

    def gone(self, rank: int) -> "Scene":
        """The pod object is no longer there, nor its agent."""
        chosen = self.of(rank)
        return replace(self, pods=tuple(p for p in self.pods if p is not chosen)).silent(rank, forgotten=True)

    def agent(self, rank: int, **fields: Any) -> "Scene":
        uid = self.of(rank).uid
        known = self.agents.get(uid) or an_agent(uid, rank, self.now)
        return replace(self, agents={**self.agents, uid: replace(known, **fields)})

    def silent(self, rank: int, *, since: float = 0, forgotten: bool = False) -> "Scene":
        uid = {pod.node_rank: pod.uid for pod in self.pods}.get(rank)
        if forgotten:
            known = {pod.uid for pod in self.pods}
            keep = {u: a for u, a in self.agents.items() if u in known and u != uid}
            return replace(self, agents=keep)
        return self.agent(rank, connected=False, last_seen=after(since))

    def exits(self, rank: int, *, at: float = 0, alive: int = 0, **fields: Any) -> "Scene":
        """The agent of that node rank reports a failed rank: code=, signal=, ordered=, ..."""
        code = fields.pop("code", None)
        told = Exit(exit_code=code, rank=rank, local_rank=0, at=after(at), **fields)
        return self.agent(rank, state=AgentState.FAILED, exit=told, ranks_alive=alive)

    def container(
        self, rank: int, code: int, reason: str = "Error", message: str = "", **fields: Any
    ) -> "Scene":
        """The kubelet tells how the container of that node rank ended."""
        phase = PodPhase.SUCCEEDED if code == 0 else PodPhase.FAILED
        ending = Termination(code, reason=reason, message=message, **fields)
        return self.pod(rank, phase=phase, termination=ending).agent(rank, connected=False)

    def all(self, **fields: Any) -> "Scene":
        """The same change to every agent."""
        scene = self
        for rank in sorted({pod.node_rank for pod in self.pods}):
            scene = scene.agent(rank, **fields)
        return scene

    def steps(self, step: int, *, rank: int = 0, at: float = 0, **fields: Any) -> "Scene":
        return self.agent(rank, progress=Progress(step=step, at=after(at), **fields))

    # -- time, and what comes of it

    def later(self, seconds: float) -> "Scene":
        return replace(self, now=self.now + timedelta(seconds=seconds))

    def world(self) -> World:
        return World(
            uid=self.job.metadata.uid,
            job=self.job,
            pods=self.pods,
            agents=self.agents,
            nodes=Nodes(self.nodes),
            **{"template_frozen": True, "accelerators": (ground.GPU,), **self.seen},
        )

    def plan(self) -> Plan:
        return decide(self.world(), self.now)

    def written(self) -> "Scene":
        """The scene after the plan's status is stored and its memory handed on; no action has had effect."""
        plan = self.plan()
        assert plan.status is not None
        kept: dict[str, Any] = {"memory": plan.memory}
        if plan.placement is not None:
            kept["claim"] = plan.placement
        return self._with_job(status=plan.status).see(**kept)


def an_agent(uid: str, rank: int, now: datetime, **fields: Any) -> Agent:
    known: dict[str, Any] = {
        "state": AgentState.IDLE,
        "round": 0,
        "connected": True,
        "last_seen": now,
        "address": f"10.0.0.{rank}",
        "port": 20_000 + rank,
    }
    return Agent(pod_uid=uid, **{**known, **fields})


def a_pod(rank: int, *, round_: int = 1, node: str | None = None, **fields: Any) -> Pod:
    known: dict[str, Any] = {"phase": PodPhase.RUNNING, "bound": True, "created": NOON}
    return Pod(
        name=pod_name("gpt", UID, round_, rank),
        uid=f"p{round_}-{rank}",
        node_rank=rank,
        since_round=round_,
        birth_round=round_,
        slot=rank,
        node=node or f"n{rank}",
        **{**known, **fields},
    )


# -- scenes to begin with: where a job stands when nothing has gone wrong


def fresh(nodes: int = 2, **spec: Any) -> Scene:
    """Applied, and never looked at; the cluster has one node more than needed."""
    job = ground.a_job(numNodes=nodes, numProcPerNode=2, **spec)
    job = job.model_copy(
        update={"metadata": job.metadata.model_copy(update={"uid": UID, "creation_timestamp": NOON})}
    )
    there = {f"n{i}": ground.a_node(f"n{i}") for i in range(nodes + 1)}
    return Scene(job, nodes=there, seen={"template_frozen": False})


def admitted(nodes: int = 2, **spec: Any) -> Scene:
    """Round 1 is open, the template is frozen, no pod is there."""
    scene = fresh(nodes, **spec)
    status = TrainingJobStatus(
        round=1,
        admitted_time=NOON,
        template_hash=shape_hash(scene.job),
        template_revision="gpt-c0ffe-shape",
        conditions=(
            a_condition(ConditionType.SUSPENDED, False, "NotSuspended"),
            a_condition(ConditionType.ADMITTED, True, "Admitted"),
            a_condition(ConditionType.RUNNING, False, "Admitted"),
        ),
        ledger=Ledger(stage=Stage.PLACEMENT, stage_since=NOON),
        observed_generation=3,
    )
    claim = Placement({rank: f"n{rank}" for rank in range(nodes)})
    return scene._with_job(status=status).see(template_frozen=True, claim=claim)


def placed(nodes: int = 2, **spec: Any) -> Scene:
    """Every pod is created and bound; no container runs."""
    scene = admitted(nodes, **spec)
    pods = tuple(a_pod(rank, phase=PodPhase.PENDING) for rank in range(nodes))
    return replace(scene, pods=pods)


def at_barrier(nodes: int = 2, **spec: Any) -> Scene:
    """Every agent stands at the barrier of round 1."""
    scene = placed(nodes, **spec)
    for rank in range(nodes):
        scene = scene.pod(rank, phase=PodPhase.RUNNING)
        scene = scene.agent(rank, state=AgentState.READY, round=1)
    return scene


def released(nodes: int = 2, **spec: Any) -> Scene:
    """The release is written, nobody was told yet."""
    scene = at_barrier(nodes, **spec)
    return scene.status(released_round=1, start_time=NOON)


def a_release(rank: int, nodes: int, **fields: Any) -> Release:
    known: dict[str, Any] = {"round": 1, "nproc": 2, "master_addr": "10.0.0.0", "master_port": 20_000}
    return Release(node_rank=rank, num_nodes=nodes, **{**known, **fields})


def running(nodes: int = 2, **spec: Any) -> Scene:
    """All ranks of round 1 run; nothing was reported yet."""
    scene = released(nodes, **spec)
    for rank in range(nodes):
        scene = scene.agent(rank, state=AgentState.RUNNING, release=a_release(rank, nodes), ranks_alive=2)
    return scene.condition(ConditionType.RUNNING, True, "AllRanksRunning").status(
        ledger=Ledger(stage=Stage.PRODUCTIVE, stage_since=NOON)
    )
