"""A life: one or two jobs, a seed, an hour of bad luck, then calm; and what must hold at every moment of it."""

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from rerail_api.contract import AgentState
from rerail_api.rules import check_change
from rerail_api.spec import CheckpointSpec, FailurePolicy
from rerail_api.status import ConditionType, Phase, TrainingJobStatus
from rerail_operator.core.decide import decide
from rerail_operator.core.plan import CreatePod, OrderRun, Plan
from rerail_operator.core.world import Exit, World

from . import ground
from .builders import NOON
from .toy_cluster import Program, ToyCluster, ToyNode, ToyPod
from .toy_operator import ToyOperator

ENDS_WITHIN = timedelta(hours=3)
"""Of calm: exclusions last half an hour, deadlines of the start a quarter, and a job may need several."""


class Life:
    """Same seed, same life."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        self.cluster = ToyCluster(rng, NOON)
        self.operator = ToyOperator(self.cluster, rng, self._witness)
        self.finished: dict[str, object] = {}
        self.ran: dict[tuple[str, int, int], str] = {}
        self.blows = 0  # strokes of bad luck that can interrupt a gang
        sizes = [rng.choice((1, 2, 2, 3, 4, 6)) for _ in range(rng.choice((1, 1, 2)))]
        self.spares = [random.Random(seed * 31 + n).choice((0, 0, 1, 2)) for n, _ in enumerate(sizes)]
        self.ranks: dict[str, int] = {}  # of each pod, once it had one
        for number in range(max(sizes) + rng.randrange(3) + sum(self.spares) // 2):
            self.cluster.nodes[f"n{number}"] = ToyNode(f"n{number}")
        for number, size in enumerate(sizes):
            self._apply_job(number, size)

    def _apply_job(self, number: int, size: int) -> None:
        rng, uid = self.rng, f"job{number}-0000"
        job = ground.a_job(numNodes=size, numProcPerNode=2, suspend=rng.random() < 0.05)
        meta = job.metadata.model_copy(
            update={"uid": uid, "name": f"job{number}", "resource_version": "0",
                    "creation_timestamp": NOON + timedelta(seconds=number)}
        )  # fmt: skip
        spec = job.spec.model_copy(
            update={"failure_policy": FailurePolicy(max_restarts=rng.choice((2, 10, 50)))}
        )
        spec = spec.model_copy(update={"spares": self.spares[number]})
        if rng.random() < 0.1:
            spec = spec.model_copy(update={"active_deadline_seconds": 120})
        spec = spec.model_copy(
            update={"checkpoint": CheckpointSpec(interval=("auto", 40, None)[(size + number) % 3])}
        )
        self.cluster.jobs[uid] = job.model_copy(update={"metadata": meta, "spec": spec})
        poison = rng.random() < 0.15
        self.cluster.programs[uid] = Program(
            total_steps=rng.choice((20, 60, 120)),
            reports=rng.random() < 0.9,
            fails_at=rng.choice((0, 7, 33)) if poison else None,
            fails_on_all=rng.random() < 0.5,
            code=rng.choice((1, 64, 139)),
        )

    # -- living

    def live(self) -> None:
        """Bad luck, then calm until every job has ended. Raises AssertionError where something does not hold."""
        rng = self.rng
        self.operator.trouble = rng.choice((0.0, 0.02, 0.1))
        for _ in range(rng.randrange(20, 90)):
            if rng.random() < 0.25:
                fault = rng.choice(FAULTS)
                self.blows += fault not in HARMLESS
                fault(self)
            self._tick(rng.choice((0.2, 0.5, 1.0, 1.0, 2.0)))
        self._calm()
        until = self.cluster.now + ENDS_WITHIN
        while not self._all_ended():
            assert self.cluster.now < until, f"no end: {self._standing()}"
            self._tick(self._patience())
        self._epilogue()

    def _patience(self) -> float:
        """How far time may jump in calm: nothing moves by itself but what the operator waits for."""
        moving = any(a.state in (AgentState.RUNNING, AgentState.READY) for a in self.cluster.agents.values())
        return 1.0 if moving or self.rng.random() < 0.5 else 10.0

    def _tick(self, seconds: float) -> None:
        self.cluster.pass_time(seconds)
        self._check_processes()
        self.operator.look()
        for uid in list(self.cluster.jobs):
            self._check_stored(uid)
        self._check_processes()

    def _calm(self) -> None:
        """Whatever is broken is mended; nothing new breaks."""
        cluster = self.cluster
        self.operator.trouble, self.operator.quota_until = 0.0, None
        for node in cluster.nodes.values():
            node.powered = node.linked = True
            node.cordoned = node.foreign = False
        for number in range(max(job.spec.num_nodes for job in cluster.jobs.values())):
            cluster.nodes.setdefault(f"n{number}", ToyNode(f"n{number}"))
        for pod in cluster.pods.values():
            pod.hangs = False
        for uid, job in cluster.jobs.items():
            if job.spec.suspend:
                cluster.change_spec(uid, suspend=False)

    def _all_ended(self) -> bool:
        return all(job.status.finished for job in self.cluster.jobs.values())

    def _epilogue(self) -> None:
        """A finished job stays as it ended, whatever happens to its pods."""
        for _ in range(10):
            pods = list(self.cluster.pods)
            if pods and self.rng.random() < 0.3:
                self.cluster.remove_pod(self.rng.choice(pods))
            self._tick(5.0)
        assert not any(a.state is AgentState.RUNNING for a in self.cluster.agents.values()), "ranks run on"
        left = [pod.seen.name for pod in self.cluster.pods.values() if pod.seen.spare]
        assert not left, f"a finished job holds spares: {left}"

    def _standing(self) -> str:
        return "; ".join(
            f"{uid}: {job.status.phase} {job.status.reason} {job.status.message}"
            for uid, job in self.cluster.jobs.items()
        )

    # -- what must hold

    def _witness(self, uid: str, world: World, plan: Plan) -> None:
        """At every pass."""
        job = world.job
        assert job is not None
        if job.status.finished:
            assert plan.status is None and not any(isinstance(a, (CreatePod, OrderRun)) for a in plan.actions)
        if self.rng.random() < 0.2:
            self._check_order_is_irrelevant(world, plan)
        after = plan.status
        if after is None:
            return
        # The API server's own rules, by their Python twins: rounds, ends and completion times stay.
        problems = check_change(job, job.model_copy(update={"status": after}))
        assert not problems, problems
        assert plan.intent or counted(after) == counted(job.status)
        running = {a.pod_uid for a in world.agents.values() if a.round == after.round and a.state in RUNS}
        unheard = {pod.uid for pod in world.pods if pod.alive and pod.uid not in world.agents}
        if job.status.is_true(ConditionType.RUNNING) and self._new_leader():
            running |= unheard  # nothing is known against them yet
        assert after.phase is not Phase.RUNNING or len(running) >= job.spec.num_nodes
        assert after.is_true(ConditionType.RUNNING) == (after.phase is Phase.RUNNING)
        if after.released_round != job.status.released_round:
            self._check_barrier(world, after.round)
        self._check_ledger(world, plan)
        if plan.placement is not None:
            self._check_claim(uid, world, plan)

    def _new_leader(self) -> bool:
        since = self.operator.leading_since
        return since is not None and self.cluster.now - since < timedelta(seconds=20)

    def _check_barrier(self, world: World, round_: int) -> None:
        """Opened only for exactly one living pod per node rank, each with its agent at the barrier."""
        assert world.job is not None
        living = [pod for pod in world.pods if pod.alive and not pod.spare]
        assert sorted(pod.node_rank for pod in living) == list(range(world.job.spec.num_nodes))
        agents = [world.agents[pod.uid] for pod in living]
        assert all(a.connected and a.round == round_ and a.state is AgentState.READY for a in agents)

    def _check_order_is_irrelevant(self, world: World, plan: Plan) -> None:
        pods, agents = list(world.pods), list(world.agents.items())
        self.rng.shuffle(pods)
        self.rng.shuffle(agents)
        assert decide(replace(world, pods=tuple(pods), agents=dict(agents)), self.cluster.now) == plan

    def _check_ledger(self, world: World, plan: Plan) -> None:
        assert plan.status is not None and world.job is not None
        ledger, created = plan.status.ledger, world.job.metadata.creation_timestamp
        parts = ledger.productive_seconds + sum(ledger.lost_seconds.values())
        assert created is not None and ledger.stage_since is not None
        assert abs(parts - ledger.wall_seconds) < 1e-6
        assert abs(parts - max(0.0, (ledger.stage_since - created).total_seconds())) < 1e-6
        for incident in plan.status.incidents[-1:]:
            if incident.resolved_time is not None and incident.start_time is not None:
                took = (incident.resolved_time - incident.start_time).total_seconds()
                assert abs(sum(incident.stage_seconds.values()) - took) < 1e-5, incident

    def _check_claim(self, uid: str, world: World, plan: Plan) -> None:
        assert plan.placement is not None
        claimed = list(plan.placement.nodes.values())
        assert len(set(claimed)) == len(claimed)
        assert not set(claimed) & set(self.operator.reserved(besides=uid)), "two gangs count on one node"

    def _check_stored(self, uid: str) -> None:
        """At every moment, of what the API server holds."""
        status = self.cluster.jobs[uid].status
        if uid in self.finished:
            assert self.finished[uid] == status, "a finished job has changed"
        elif status.finished:
            self.finished[uid] = status
        known = status.incidents[-1].number if status.incidents else 0
        fatal = 1 if known > status.restarts.total else 0
        assert known == status.restarts.total + fatal, "a restart was lost, doubled or not counted"
        own = (
            status.same_point.count
            if self.cluster.programs[uid].fails_at is not None and status.same_point
            else 0
        )
        assert known <= self.blows + max(own, 3 * (self.cluster.programs[uid].fails_at is not None)), (
            "one blow was counted twice"
        )
        assert not fatal or status.is_true(ConditionType.FAILED)
        assert status.restarts.total <= max(0, status.round - 1)
        assert len(status.incidents) <= 16
        assert not any(incident.log_lines for incident in status.incidents[:-1])

    def _check_processes(self) -> None:
        """At every moment, of what runs on the nodes, known to anybody or not."""
        masters: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for pod in self.cluster.pods.values():
            if not pod.seen.spare:
                rank = self.ranks.setdefault(pod.seen.uid, pod.seen.node_rank)
                assert rank == pod.seen.node_rank, f"{pod.seen.name} was moved from node rank {rank}"
        for agent in self.cluster.agents.values():
            if agent.state is not AgentState.RUNNING or agent.release is None:
                continue
            seat = (agent.job, agent.round, agent.release.node_rank)
            assert self.ran.setdefault(seat, agent.uid) == agent.uid, f"two pods ran as {seat}"
            release, pod = agent.release, self.cluster.pods.get(agent.uid)
            assert pod is None or pod.seen.node_rank == release.node_rank, "a spare is in a rendezvous"
            masters.setdefault(seat[:2], set()).add((release.master_addr, release.master_port))
        assert all(len(found) == 1 for found in masters.values()), "ranks of one round of two releases"


RUNS = (AgentState.RUNNING, AgentState.DONE)


def counted(status: TrainingJobStatus) -> tuple[int, int, int]:
    """What may rise by an intent only."""
    return status.round, status.restarts.total, status.restarts.charged


# -- bad luck: each picks its victim, if there is one


def _some_node(life: Life) -> ToyNode | None:
    nodes = list(life.cluster.nodes.values())
    return life.rng.choice(nodes) if nodes else None


def _some_pod(life: Life) -> ToyPod | None:
    pods = list(life.cluster.pods.values())
    return life.rng.choice(pods) if pods else None


def rank_fails(life: Life) -> None:
    agents = list(life.cluster.agents)
    if agents:
        told = life.rng.choice(
            (Exit(1, rank=1, exception="ValueError"), Exit(None, signal=9, rank=0), Exit(82, rank=0, contract=True),
             Exit(81, rank=0, contract=True), Exit(139, rank=1))
        )  # fmt: skip
        life.cluster.rank_ends(life.rng.choice(agents), replace(told, lines=("a", "b")))


def container_dies(life: Life) -> None:
    pod = _some_pod(life)
    if pod is not None and pod.seen.uid in life.cluster.agents:
        life.cluster.container_ends(pod.seen.uid, 137, life.rng.choice(("OOMKilled", "Error")))


def node_dies(life: Life) -> None:
    node = _some_node(life)
    if node is not None:
        node.powered = False


def node_is_cut_off(life: Life) -> None:
    node = _some_node(life)
    if node is not None:
        node.linked = False


def node_comes_back(life: Life) -> None:
    for node in life.cluster.nodes.values():
        node.powered = node.linked = True
        node.cordoned = node.foreign = False


def node_vanishes(life: Life) -> None:
    node = _some_node(life)
    if node is not None and len(life.cluster.nodes) > 1:
        del life.cluster.nodes[node.name]
        life.cluster.changes += 1


def node_is_drained(life: Life) -> None:
    node = _some_node(life)
    if node is not None:
        node.cordoned = True
        for pod in list(life.cluster.pods.values()):
            if pod.seen.node == node.name and not pod.seen.ended:
                pod.seen = replace(pod.seen, disruption="EvictionByEvictionAPI")
                life.cluster.delete_pod(pod.seen.uid)


def node_is_taken(life: Life) -> None:
    node = _some_node(life)
    if node is not None and not life.cluster.taken(node.name):
        node.foreign = True
        life.cluster.changes += 1


def pod_is_deleted(life: Life) -> None:
    pod = _some_pod(life)
    if pod is not None:
        pod.hangs = life.rng.random() < 0.4
        life.cluster.delete_pod(pod.seen.uid)


def pod_vanishes(life: Life) -> None:
    pod = _some_pod(life)
    if pod is not None:
        life.cluster.remove_pod(pod.seen.uid)


def agent_is_cut_off(life: Life) -> None:
    agents = list(life.cluster.agents.values())
    if agents:
        away = life.rng.choice((1, 5, 15, 40))
        life.rng.choice(agents).reaches_at = life.cluster.now + timedelta(seconds=away)


def agent_is_stuck(life: Life) -> None:
    agents = [a for a in life.cluster.agents.values() if a.stops_at is not None]
    if agents:
        agent = life.rng.choice(agents)
        agent.state, agent.stops_at = AgentState.STUCK, None


def operator_dies(life: Life) -> None:
    life.operator.restart(life.rng.choice((0.5, 5, 20)))


def somebody_suspends(life: Life) -> None:
    uid = life.rng.choice(list(life.cluster.jobs))
    life.cluster.change_spec(uid, suspend=not life.cluster.jobs[uid].spec.suspend)


def quota_is_full(life: Life) -> None:
    life.operator.quota_until = life.cluster.now + timedelta(seconds=life.rng.choice((5, 30)))


FAULTS: tuple[Callable[[Life], None], ...] = (
    rank_fails, rank_fails, rank_fails, container_dies, node_dies, node_is_cut_off, node_comes_back, node_comes_back,
    node_vanishes, node_is_drained, node_is_taken, pod_is_deleted, pod_vanishes, agent_is_cut_off, agent_is_stuck,
    operator_dies, somebody_suspends, somebody_suspends, quota_is_full,
)  # fmt: skip

HARMLESS = frozenset({node_comes_back, node_is_taken, operator_dies, somebody_suspends, quota_is_full})
