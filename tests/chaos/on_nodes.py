"""Lives of real jobs on real nodes: the trainer, the kubelets and the chart's operators, hurt at random moments.

A life is a short training with one or two blows, drawn by its seed. The second is dealt as soon as the job trains
again, whatever the first took away. What comes of it is seen from outside: the job's status, the losses that the
trainer wrote, the processes of this machine.
"""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rerail_api.contract import Env
from rerail_operator.shell.local import processes
from tests.cluster.e2e.operator_process import SYSTEM
from tests.cluster.e2e.site import LEASE, Site, training
from tests.cluster.rig import ControlPlane, Options
from tests.cluster.rig.images import build_images

from .invariants import Account, Resumption, broken

FIRST_BLOW = range(15, 40)
STEPS_BETWEEN = 15
LAST_STEPS = 50
"""About a second: what is dealt so near the end may meet a job that is over."""
END_SECONDS = 180.0
FROZEN_SECONDS = 3.0
KUBELET_AWAY_SECONDS = 6.0
CUT_SECONDS = 12.0
NODE_GRACE_SECONDS = 20
CLOCK_SLACK_SECONDS = 3.0
"""A creation time has whole seconds, and the end is seen by polling."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What is done to a running job, and how many restarts it causes; None where more than one may be right."""

    name: str
    deal: Callable[["NodeLife", str], None]
    restarts: int | None
    most: int
    needs_a_third_node: bool = False
    costs_a_node: bool = False
    """Until the life is over: giving it back takes longer than what is left to train."""


@dataclass(frozen=True, slots=True)
class Told:
    """One life as it was."""

    seed: int
    dealt: tuple[str, ...]
    account: Account
    seconds: float

    def problems(self) -> list[str]:
        return broken(self.account)

    def __str__(self) -> str:
        restarts = self.account.status["restarts"]["total"]
        blows = "; ".join(self.dealt)
        return f"life {self.seed}: {blows}: {restarts} restarts, {self.seconds:.0f} s"


@dataclass
class NodeLife:
    """One job; `reference` has the losses of one like it that nothing disturbed."""

    site: Site
    seed: int
    reference: Mapping[int, float]
    mend: list[Callable[[], Any]] = field(default_factory=list)
    dealt: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"life-{self.seed}"

    def live(self) -> Told:
        """From submission to the end of its last process. Raises AssertionError where it does not get there."""
        rng, site, began = random.Random(self.seed), self.site, time.time()
        drawn = blows_of(rng, len(site.nodes.names))
        site.submit(training(self.name, steps=len(self.reference)))
        try:
            at = rng.choice(FIRST_BLOW)
            blows = []
            for blow in drawn:
                self._until_it_steps(at)
                if self._deal(blow, rng.choice(sorted(site.pods(self.name)))):
                    blows.append(blow)
                at = site.step(self.name) + STEPS_BETWEEN
            status = site.until_job(self.name, END_SECONDS, phase="Complete")
            ended = time.time()
        finally:
            self._tidy_up()
        exact = all(blow.restarts is not None for blow in blows)
        account = Account(
            status=status,
            restarts=sum(blow.restarts or 0 for blow in blows) if exact else None,
            most_restarts=sum(blow.most for blow in blows),
            lived=ended - began,
            slack=CLOCK_SLACK_SECONDS,
            losses=self._losses(),
            reference=self.reference,
            resumptions=self._resumptions(),
            pods=sorted(site.pods(self.name)),
            processes=self._left(),
        )
        return Told(self.seed, tuple(self.dealt), account, ended - began)

    def node_of(self, pod: str) -> str:
        return str(self.site.pods(self.name)[pod]["spec"]["nodeName"])

    def _deal(self, blow: Blow, pod: str) -> bool:
        """Whether it was dealt: to a job that makes its last steps it would come too late."""
        step = self.site.step(self.name)
        late = step > len(self.reference) - LAST_STEPS
        self.dealt.append(f"{blow.name} ({pod} at step {step}{', too late' if late else ''})")
        if not late:
            blow.deal(self, pod)
        return not late

    # ---- steps ------------------------------------------------------------------------------------------

    def _until_it_steps(self, at: int) -> None:
        """Runs, has left its last interruption behind, and has come to this step."""

        def steps() -> bool:
            seen = self.site.status(self.name)
            closed = all("resolvedTime" in incident for incident in seen.get("incidents", ()))
            return bool(closed and seen.get("phase") == "Running" and self.site.step(self.name) >= at)

        self.site.until(f"{self.name} runs at step {at}", steps, END_SECONDS)

    def _tidy_up(self) -> None:
        self._uid = self.site.cluster.get("tj", self.name)["metadata"]["uid"]
        while self.mend:
            self.mend.pop()()
        self.site.until("the operators are Ready", self._operated, 120)
        self.site.delete_jobs()

    def _operated(self) -> bool:
        deployment = self.site.cluster.get("deployment", "rerail", "-n", SYSTEM)
        return bool(deployment["status"].get("readyReplicas") == deployment["spec"]["replicas"])

    def _left(self) -> list[int]:
        """Processes of the job, which the end of its pods may precede by a moment only."""
        with suppress(AssertionError):
            self.site.until("no process is left", lambda: not processes.marked(Env.JOB_UID, self._uid), 10)
        return processes.marked(Env.JOB_UID, self._uid)

    def _losses(self) -> list[tuple[int, float]]:
        return [(step, float(loss)) for step, loss in self.site.printed(self.name)]

    def _resumptions(self) -> list[Resumption]:
        found: list[Resumption] = []
        committed = 0
        for text in (self.site.nodes.shared_on_host / f"{self.name}.jsonl").read_text().splitlines():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                if line.get("event") == "start":
                    found.append(Resumption(len(found) + 1, line["step"], committed))
                elif line.get("event") == "commit":
                    committed = max(committed, line["step"])
        return found


# ---- blows ----------------------------------------------------------------------------------------------


def _signal_rank(number: signal.Signals) -> Callable[[NodeLife, str], None]:
    return lambda life, pod: os.kill(life.site.ranks(pod)[0], number)


def _freeze(life: NodeLife, pod: str) -> None:
    """Shorter than any patience: nothing may come of it."""
    (pid,) = life.site.ranks(pod)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    os.kill(pid, signal.SIGCONT)


def _kill_agent(life: NodeLife, pod: str) -> None:
    os.kill(life.site.agent(pod), signal.SIGKILL)


def _delete(life: NodeLife, pod: str) -> None:
    life.site.cluster.kubectl("delete", "pod", pod, "--wait=false")


def _drain(life: NodeLife, pod: str) -> None:
    node, api = life.node_of(pod), life.site.cluster.api
    life.mend.append(lambda: life.site.cluster.kubectl("uncordon", node))
    life.site.cluster.kubectl("cordon", node)
    meta = {"name": pod, "namespace": "default"}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    api.post(f"/api/v1/namespaces/default/pods/{pod}/eviction", eviction)


def _kubelet_away(life: NodeLife, pod: str) -> None:
    """Shorter than the node's grace: its pods run on, and nothing may come of it. The job does not wait for it."""
    node = life.node_of(pod)
    back = threading.Timer(KUBELET_AWAY_SECONDS, life.site.nodes.start_kubelet, [node])
    life.site.nodes.stop_kubelet(node)
    back.start()
    life.mend.append(back.join)


def _kill_leader(life: NodeLife, _: str) -> None:
    holder = str(life.site.cluster.api.get(LEASE)["spec"]["holderIdentity"]).partition("_")[0]
    for pid in life.site.nodes.pids(SYSTEM, holder, matching="rerail_operator"):
        os.kill(pid, signal.SIGKILL)


def _kill_node(life: NodeLife, pod: str) -> None:
    node = life.node_of(pod)
    life.mend.append(lambda: life.site.nodes.restart_node(node))
    life.site.nodes.kill_node(node)


def _cut_node(life: NodeLife, pod: str) -> None:
    node = life.node_of(pod)
    life.site.nodes.cut_network(node)
    try:
        time.sleep(CUT_SECONDS)
    finally:
        life.site.nodes.mend_network(node)


BLOWS: Sequence[Blow] = (
    Blow("a rank is killed", _signal_rank(signal.SIGKILL), 1, 1),
    Blow("a rank crashes", _signal_rank(signal.SIGSEGV), 1, 1),
    Blow("a rank stands still for a moment", _freeze, 0, 0),
    Blow("an agent is killed", _kill_agent, 1, 1),
    Blow("a pod is deleted", _delete, 1, 1),
    Blow("the leader is killed", _kill_leader, 0, 0),
    Blow("a kubelet is away", _kubelet_away, 0, 0, costs_a_node=True),
    Blow("a node is drained", _drain, 1, 1, needs_a_third_node=True, costs_a_node=True),
    Blow("a node dies", _kill_node, None, 2, needs_a_third_node=True, costs_a_node=True),
    Blow("a node is cut off", _cut_node, None, 3, needs_a_third_node=True),
)


def blows_of(rng: random.Random, nodes: int) -> list[Blow]:
    """One or two, for which there are nodes enough: the job needs two."""
    drawn: list[Blow] = []
    for _ in range(rng.choice((1, 2))):
        room = nodes - sum(blow.costs_a_node for blow in drawn) > 2
        drawn.append(rng.choice([blow for blow in BLOWS if room or not blow.needs_a_third_node]))
    return drawn


def undisturbed(site: Site) -> dict[int, float]:
    """The losses of a job that nothing happens to."""
    site.submit(training("undisturbed"))
    site.until_job("undisturbed", END_SECONDS, phase="Complete")
    losses = {step: float(loss) for step, loss in site.losses("undisturbed").items()}
    site.delete_jobs()
    return losses


def lives_on_nodes(seeds: Sequence[int], say: Callable[[str], None]) -> Iterator[str]:
    """One life after the other on a cluster of three nodes; what broke, in sentences."""
    images = list(build_images().values())
    with ControlPlane(Options(isolated=True, node_grace_seconds=NODE_GRACE_SECONDS)) as cluster:
        site = Site(cluster, cluster.real_nodes(3, gpus=8, images=images))
        site.install()
        reference = undisturbed(site)
        for seed in seeds:
            life, again = (
                NodeLife(site, seed, reference),
                f"replay: python -m tests.chaos nodes --seed {seed}",
            )
            try:
                told = life.live()
            except AssertionError as failure:
                say(site.evidence())
                yield f"life {seed} ({'; '.join(life.dealt)}): {failure}; {again}"
                continue
            say(str(told))
            yield from (f"{told}: {problem}; {again}" for problem in told.problems())
        site.check_garbage()
