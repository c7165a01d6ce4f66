"""The yard: a control plane with the chart's role and CRD, pretended nodes, operators as processes, stand-in agents."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.rig import ApiError, ControlPlane, paths

from .jobs import LABEL_JOB, NAMESPACE, Json, jobs_path, matches, pods_path
from .operator_process import SYSTEM, OperatorProcess
from .standins import StandIns

T = TypeVar("T")
SECONDS = 60.0


class Yard:
    """What a test of the control-plane ring works with."""

    def __init__(self, cluster: ControlPlane, folder: Path, nodes: int) -> None:
        self.cluster, self._folder = cluster, folder
        self.operators: list[OperatorProcess] = []
        self.nodes: list[str] = []
        self._count = nodes
        self.agents = StandIns(cluster.api, lambda: [one.address for one in self.operators])

    # ---- life -------------------------------------------------------------------------------------------

    def open(self) -> None:
        chart = str(paths.CHECKOUT / "helm" / "rerail")
        self.cluster.helm(
            *("install", "rerail", chart, "--namespace", SYSTEM, "--create-namespace"),
            *("--set", "image.repository=none.example/rerail"),
        )
        # The replicas are processes of this test; the pods of the chart would only be pretended.
        self.cluster.kubectl("scale", "deployment/rerail", "--replicas=0", "-n", SYSTEM)
        self.nodes = self.cluster.kwok(self._count)
        self._kubeconfig = self.cluster.service_account_kubeconfig(SYSTEM, "rerail")
        self.agents.start()

    def close(self) -> None:
        self.agents.stop()
        for operator in self.operators:
            operator.kill()

    def operate(self, count: int) -> list[OperatorProcess]:
        """Exactly this many operators run, the first `count` ever started; all are Ready when this returns."""
        while len(self.operators) < count:
            self.operators.append(OperatorProcess(self._kubeconfig, self._folder, len(self.operators)))
        for operator in self.operators[count:]:
            operator.stop()
        for operator in self.operators[:count]:
            if not operator.alive:
                operator.start()
        for operator in self.operators[:count]:
            operator.await_ready()
        return self.operators[:count]

    def leave_nothing_behind(self) -> None:
        """Every job goes, in whatever phase it is, and with it everything that was made for it."""
        api = self.cluster.api
        for found in api.get("/apis/rerail.dev/v1alpha1/trainingjobs")["items"]:
            with suppress(ApiError):
                api.delete(f"{jobs_path(found['metadata']['namespace'])}/{found['metadata']['name']}")
        self.until("no pod is left of any job", lambda: not self._left("/api/v1/pods"))

    def check_garbage(self) -> None:
        """What a job owned is gone too. The collector learns of a new kind within half a minute: ask once, at the end."""
        kinds = ("/api/v1/configmaps", "/apis/apps/v1/controllerrevisions")
        self.until("nothing is left of any job", lambda: not any(self._left(kind) for kind in kinds))

    def _left(self, path: str) -> list[Json]:
        owned = "app.kubernetes.io%2Fmanaged-by%3Drerail,rerail.dev%2Fjob-uid"
        return list(self.cluster.api.get(f"{path}?labelSelector={owned}")["items"])

    # ---- jobs -------------------------------------------------------------------------------------------

    def submit(self, *manifests: Json) -> None:
        for manifest in manifests:
            self.cluster.api.post(jobs_path(manifest["metadata"]["namespace"]), manifest)

    def change(self, name: str, spec: Json, namespace: str = NAMESPACE) -> None:
        """Merge-patch the spec, as a person does."""
        self.cluster.api.patch(f"{jobs_path(namespace)}/{name}", {"spec": spec})

    def status(self, name: str, namespace: str = NAMESPACE) -> Json:
        return dict(self.cluster.api.get(f"{jobs_path(namespace)}/{name}").get("status") or {})

    def until_job(
        self, name: str, seconds: float = SECONDS, namespace: str = NAMESPACE, **wanted: Any
    ) -> Json:
        """The status once all `wanted` fields have their values."""

        def look() -> Json | None:
            seen = self.status(name, namespace)
            return seen if matches(seen, wanted) else None

        return self.until(f"job {name} has {wanted}", look, seconds)

    def pods(self, name: str, namespace: str = NAMESPACE) -> dict[str, Json]:
        """The job's pods by name, those that are being deleted left out."""
        path = f"{pods_path(namespace)}?labelSelector={LABEL_JOB.replace('/', '%2F')}%3D{name}"
        found = sorted(self.cluster.api.get(path)["items"], key=lambda pod: pod["metadata"]["name"])
        return {p["metadata"]["name"]: p for p in found if "deletionTimestamp" not in p["metadata"]}

    def uids(self, name: str) -> dict[str, str]:
        return {pod: found["metadata"]["uid"] for pod, found in self.pods(name).items()}

    def annotate(self, pod: str, **notes: str | None) -> None:
        """Tell kwok how this pod is to behave: fail="137", hang_terminating="yes"; None takes it back."""
        told = {f"rerail.dev/kwok-{key.replace('_', '-')}": value for key, value in notes.items()}
        self.cluster.api.patch(f"{pods_path()}/{pod}", {"metadata": {"annotations": told}})

    def node_not_ready(self, node: str, yes: bool = True) -> None:
        note = {"rerail.dev/kwok-not-ready": "yes" if yes else None}
        self.cluster.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": note}})

    def events(self, name: str, namespace: str = NAMESPACE) -> list[str]:
        """ "Reason: message" of every event about the job."""
        found = self.cluster.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        return [f"{e['reason']}: {e['message']}" for e in found if e["involvedObject"]["name"] == name]

    # ---- waiting ----------------------------------------------------------------------------------------

    def until(
        self,
        what: str,
        look: Callable[[], T | None],
        seconds: float = SECONDS,
        kept: Iterable[OperatorProcess] = (),
    ) -> T:
        """Poll with a deadline. `kept` operators are started again when they end, as the kubelet does."""
        deadline = time.monotonic() + seconds
        while True:
            for operator in kept:
                operator.keep()
            try:
                found = look()
            except (ApiError, OSError):
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.evidence()}"
            time.sleep(0.1)

    def evidence(self) -> str:
        """What a failed test has to show: status of all jobs, pods, events, agents, the operators' last lines."""
        parts = [f"agents:\n{self.agents.describe()}"]
        for words in (
            ("get", "trainingjobs", "-A", "-o", "wide"),
            ("get", "pods", "-A", "-o", "wide"),
            ("get", "events", "-A", "--sort-by=.lastTimestamp"),
            ("get", "nodes"),
        ):
            with suppress(Exception):
                parts.append(
                    f"kubectl {' '.join(words)}\n{self.cluster.kubectl(*words, '--request-timeout=5s')[-4000:]}"
                )
        parts += [
            f"{one.name} (alive: {one.alive}, starts: {one.starts})\n{one.tail()}" for one in self.operators
        ]
        return "\n\n".join(parts)
