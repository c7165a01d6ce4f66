"""A cluster small enough to live two hundred lives in seconds: API objects, kubelets, agents, one clock.

It knows nothing of Rerail's decisions. Time is virtual; randomness is the life's own. Nodes hold one pod each.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.status import TrainingJobStatus
from rerail_api.v1alpha1 import TrainingJob
from rerail_operator.core.world import Agent, Exit, Pod, PodPhase, Progress, Release, Termination

NOT_READY_AFTER = timedelta(seconds=40)
VICTIM_AFTER = timedelta(seconds=1)
SAVE_EVERY = 10
STALL = 0.3
"""Seconds for which each save holds the steps up; told in every progress line."""

LIVE = (PodPhase.PENDING, PodPhase.RUNNING)
Order = tuple[str, int, Release | None]  # what, round (or exit code), release


@dataclass
class ToyNode:
    name: str
    powered: bool = True
    linked: bool = True  # reaches the API server, the coordinator and the other nodes
    ready: bool | None = True
    cordoned: bool = False
    foreign: bool = False  # somebody else's pod fills it
    away_since: datetime | None = None

    @property
    def there(self) -> bool:
        return self.powered and self.linked


@dataclass
class ToyPod:
    """An API object; its process is the agent of the same UID, which may outlive it."""

    seen: Pod
    job: str
    due: datetime  # when the kubelet is done with its next step: starting, or stopping
    hangs: bool = False


@dataclass
class ToyAgent:
    """One process on a node."""

    uid: str
    job: str
    node: str
    reaches_at: datetime  # when it is connected (again)
    state: AgentState = AgentState.IDLE
    round: int = 0
    release: Release | None = None
    exit: Exit | None = None
    progress: Progress | None = None
    ranks_alive: int = 0
    stops_at: datetime | None = None
    goal: int = 0
    advised: int | None = 0  # None: an agent of before, which takes no advice

    def view(self, now: datetime) -> Agent:
        """What it reports."""
        number = int(self.uid.split("-")[-1])
        return Agent(
            self.uid, self.state, self.round, True, now, f"10.0.{number // 250}.{number % 250}",
            20_000 + 7 * self.round, self.release, self.exit, self.progress, self.ranks_alive, self.advised,
        )  # fmt: skip


@dataclass
class Program:
    """What the ranks of a job do: steps, checkpoints, and the failure that it carries in itself, if any."""

    total_steps: int = 60
    reports: bool = True
    fails_at: int | None = None  # at this step of every round: poison
    fails_on_all: bool = False  # every rank, with the same last line
    code: int = 1
    committed: int = 0
    step: float = 0.0
    began: int = 0  # the step that the running round continued from
    round: int = 0
    stalled: float = 0.0  # in the running round
    stalled_ever: float = 0.0


@dataclass
class ToyCluster:
    rng: random.Random
    now: datetime
    nodes: dict[str, ToyNode] = field(default_factory=dict)
    jobs: dict[str, TrainingJob] = field(default_factory=dict)  # by UID
    programs: dict[str, Program] = field(default_factory=dict)
    pods: dict[str, ToyPod] = field(default_factory=dict)  # by UID
    agents: dict[str, ToyAgent] = field(default_factory=dict)  # by pod UID
    serial: int = 0
    changes: int = 0  # rises whenever something changed that an informer or the coordinator would tell

    # -- the API server

    def write_status(self, uid: str, status: TrainingJobStatus, version: str) -> bool:
        """Guarded by resourceVersion; False is a conflict."""
        job = self.jobs[uid]
        if job.metadata.resource_version != version:
            return False
        self.jobs[uid] = job.model_copy(update={"status": status, "metadata": self._bumped(job)})
        self.changes += 1
        return True

    def change_spec(self, uid: str, **fields: object) -> None:
        job = self.jobs[uid]
        meta = self._bumped(job).model_copy(update={"generation": job.metadata.generation + 1})
        spec = job.spec.model_copy(update=fields)
        self.jobs[uid] = job.model_copy(update={"spec": spec, "metadata": meta})
        self.changes += 1

    def _bumped(self, job: TrainingJob):  # type: ignore[no-untyped-def]
        self.serial += 1
        return job.metadata.model_copy(update={"resource_version": str(self.serial)})

    def create_pod(self, job: str, pod: Pod) -> bool:
        """False: the name is taken. The UID is ours to give."""
        if any(known.seen.name == pod.name for known in self.pods.values()):
            return False
        self.serial += 1
        pod = replace(pod, uid=f"u-{self.serial}", created=self.now)
        self.pods[pod.uid] = ToyPod(pod, job, self.now)
        self.changes += 1
        return True

    def promote(self, uid: str, node_rank: int, round_: int) -> None:
        """The guarded label patch: a pod that is gone, going or no spare any more stays as it is."""
        found = self.pods.get(uid)
        if found is not None and found.seen.spare and not found.seen.deleting:
            self._see(found, node_rank=node_rank, since_round=round_)

    def delete_pod(self, uid: str) -> None:
        found = self.pods.get(uid)
        if found is None or found.seen.deleting:
            return
        self._see(found, deleting=True)
        found.due = self.now + timedelta(seconds=self.rng.uniform(0.5, 4))
        if found.seen.ended or not found.seen.bound:
            self.remove_pod(uid)

    def remove_pod(self, uid: str) -> None:
        """The object is gone. The process is not asked."""
        if self.pods.pop(uid, None) is not None:
            self.changes += 1

    def _see(self, pod: ToyPod, **fields: object) -> None:
        pod.seen = replace(pod.seen, **fields)  # type: ignore[arg-type]
        self.changes += 1

    # -- time

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for node in self.nodes.values():
            self._node(node)
        for pod in list(self.pods.values()):
            self._schedule(pod) if not pod.seen.bound else self._kubelet(pod)
        for agent in list(self.agents.values()):
            self._agent(agent)
        for uid in self.jobs:
            self._train(uid, seconds)

    def _node(self, node: ToyNode) -> None:
        ready: bool | None = True
        if not node.there:
            node.away_since = node.away_since or self.now
            ready = None if self.now - node.away_since >= NOT_READY_AFTER else node.ready
        else:
            node.away_since = None
        if ready is not node.ready:
            node.ready = ready
            self.changes += 1

    def taken(self, node: str) -> bool:
        """Whether a pod that has not ended is bound there."""
        return any(p.seen.bound and p.seen.node == node and not p.seen.ended for p in self.pods.values())

    def _schedule(self, pod: ToyPod) -> None:
        node = self.nodes.get(pod.seen.node)
        why = ""
        if node is None or node.ready is not True or node.cordoned:
            why = "0/1 nodes are available: node(s) unschedulable"
        elif node.foreign or self.taken(node.name):
            why = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu"
        if not why:
            self._see(pod, bound=True, unschedulable="")
            pod.due = self.now + timedelta(seconds=self.rng.uniform(0.5, 3))
        elif why != pod.seen.unschedulable:
            self._see(pod, unschedulable=why)

    def _kubelet(self, pod: ToyPod) -> None:
        node = self.nodes.get(pod.seen.node)
        if node is None:
            self.remove_pod(pod.seen.uid)  # the pod garbage collector
            return
        if not node.there or self.now < pod.due:
            return
        if pod.seen.deleting:
            if not pod.hangs:
                self.agents.pop(pod.seen.uid, None)
                self.remove_pod(pod.seen.uid)
        elif pod.seen.phase is PodPhase.PENDING:
            self._see(pod, phase=PodPhase.RUNNING)
            reaches_at = self.now + timedelta(seconds=self.rng.uniform(0.1, 2))
            uid = pod.seen.uid
            advised = None if int(uid.split("-")[-1]) % 5 == 0 else 0
            self.agents[uid] = ToyAgent(uid, pod.job, node.name, reaches_at, advised=advised)
        elif pod.seen.phase is PodPhase.RUNNING and pod.seen.uid not in self.agents:
            self.container_ends(pod.seen.uid, 137)  # it was off for a while: nothing runs any more

    def container_ends(self, uid: str, code: int, reason: str = "Error", said: str = "") -> None:
        self.agents.pop(uid, None)
        pod = self.pods.get(uid)
        if pod is not None and not pod.seen.ended:
            phase = PodPhase.SUCCEEDED if code == 0 else PodPhase.FAILED
            self._see(pod, phase=phase, termination=Termination(code, reason=reason, message=said))

    # -- agents and their ranks

    def reached(self) -> Iterator[ToyAgent]:
        """Agents that have a connection to the coordinator now."""
        for agent in self.agents.values():
            node = self.nodes.get(agent.node)
            if node is not None and node.there and self.now >= agent.reaches_at:
                yield agent

    def tell(self, uid: str, order: Order) -> None:
        """An order, carried out as the agent does: older rounds are not for it."""
        agent = self.agents.get(uid)
        if agent is None or not any(agent is known for known in self.reached()):
            return
        what, number, release = order
        if what == "finish":
            said = {"rerail": 1, "round": agent.round, "state": agent.state.value, "exit": None}
            self.container_ends(uid, number, "Completed" if number == 0 else "Error", json.dumps(said))
        elif what == "join" and number > max(agent.round, agent.goal):
            agent.goal = number
            agent.stops_at = self.now + timedelta(seconds=self.rng.uniform(0, 2))
        elif what == "run" and agent.state is AgentState.READY and agent.round == number:
            agent.release, agent.state, agent.ranks_alive = release, AgentState.RUNNING, 2
            if agent.advised is not None:
                agent.advised = release.checkpoint_seconds if release else 0
            self.changes += 1

    def advise(self, uid: str, number: int, seconds: int) -> None:
        agent = self.agents.get(uid)
        assert agent is None or agent.advised is not None, "an agent was told what it cannot understand"
        if agent in self.reached() and agent.round == number and agent.state is AgentState.RUNNING:
            agent.advised = seconds
            self.changes += 1

    def rank_ends(self, uid: str, told: Exit) -> None:
        agent = self.agents.get(uid)
        if agent is not None and agent.state is AgentState.RUNNING:
            alone = not told.same_on_all
            agent.exit, agent.state = replace(told, at=self.now), AgentState.FAILED
            agent.ranks_alive = 1 if alone else 0
            self.changes += 1

    def _agent(self, agent: ToyAgent) -> None:
        node = self.nodes.get(agent.node)
        if node is None or not node.powered:
            del self.agents[agent.uid]
            self.changes += 1
            return
        pod = self.pods.get(agent.uid)
        if pod is None and node.there:
            del self.agents[agent.uid]  # the kubelet ends what has no object any more
        elif pod is not None and pod.seen.deleting and node.there and agent.state is AgentState.RUNNING:
            self.rank_ends(agent.uid, Exit(75, ordered=True, rank=0))
        elif agent.stops_at is not None and self.now >= agent.stops_at:
            agent.state, agent.round, agent.stops_at = AgentState.READY, agent.goal, None
            agent.exit = agent.release = agent.progress = None
            agent.ranks_alive = 0
            self.changes += 1

    def _train(self, uid: str, seconds: float) -> None:
        """All ranks step together, or none does."""
        job, program = self.jobs[uid], self.programs[uid]
        round_ = job.status.round
        gang = [
            a for a in self.agents.values() if a.job == uid and a.round == round_ and a.release is not None
        ]
        active = [a for a in gang if a.state is AgentState.RUNNING]
        whole = {a.release.node_rank for a in active if a.release} == set(range(job.spec.num_nodes))
        if whole and all(self.nodes[a.node].linked for a in active):
            self._step(uid, program, active, seconds)
        elif active and len(gang) == job.spec.num_nodes and any(a.state is AgentState.FAILED for a in gang):
            for agent in active:
                if self.rng.random() < 0.3:  # a victim; the others hang in the collective
                    self.rank_ends(agent.uid, Exit(1, rank=1, last_line="RuntimeError: connection closed"))

    def _step(self, uid: str, program: Program, active: list[ToyAgent], seconds: float) -> None:
        round_ = active[0].round
        if program.round != round_:
            program.round, program.step, program.began = round_, float(program.committed), program.committed
            program.stalled = 0.0
        program.step += seconds * 2
        if program.fails_at is not None and program.step >= program.fails_at:
            self._fail(program, active)
            return
        step = min(int(program.step), program.total_steps)
        saves = max(0, step // SAVE_EVERY - program.committed // SAVE_EVERY)
        program.stalled += saves * STALL
        program.stalled_ever += saves * STALL
        program.committed = max(program.committed, step - step % SAVE_EVERY)
        first = next(a for a in active if a.release and a.release.node_rank == 0)
        if program.reports and step > program.began:
            first.progress = Progress(
                step=step, total_steps=program.total_steps, loss=100.0 / (1 + step), at=self.now,
                checkpoint_step=program.committed or None, resumed_from=program.began,
                stall_seconds=program.stalled,
            )  # fmt: skip
        if step >= program.total_steps:
            for agent in active:
                agent.state, agent.ranks_alive = AgentState.DONE, 0
            self.changes += 1

    def _fail(self, program: Program, active: list[ToyAgent]) -> None:
        everywhere = program.fails_on_all
        last = (program.fails_at or 0) - 1  # what was written before the end is read with it
        for agent in active:
            if agent.release and agent.release.node_rank == 0 and program.reports and last > program.began:
                agent.progress = Progress(step=last, resumed_from=program.began, at=self.now)
        for agent in active if everywhere else active[:1]:
            told = Exit(program.code, rank=0, last_line="ValueError: bad", same_on_all=everywhere)
            self.rank_ends(agent.uid, told)
