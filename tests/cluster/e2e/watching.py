"""TrainingJobs on a cluster as a test sees them: submit, read, wait with a deadline, show evidence."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from tests.cluster.rig import ApiError, ControlPlane

from .jobs import LABEL_JOB, NAMESPACE, Json, jobs_path, matches, pods_path
from .operator_process import OperatorProcess

T = TypeVar("T")
SECONDS = 60.0
SHOWN_BYTES = 5000
SHOWN = (
    ("get", "trainingjobs", "-A", "-o", "wide"),
    ("get", "pods", "-A", "-o", "wide"),
    ("get", "events", "-A", "--sort-by=.lastTimestamp"),
    ("get", "nodes"),
)


class Watching:
    """What both rings share."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.cluster = cluster

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

    def events(self, name: str, namespace: str = NAMESPACE) -> list[str]:
        """ "Reason: message" of every event about the job."""
        found = self.cluster.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        return [f"{e['reason']}: {e['message']}" for e in found if e["involvedObject"]["name"] == name]

    def namespace(self, name: str, labels: Json | None = None) -> None:
        """A namespace in which pods can be created."""
        meta = {"name": name, "labels": labels or {}}
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.until(f"the account of namespace {name} is there", lambda: self.cluster.api.get(account))

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
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.1)

    def delete_jobs(self) -> None:
        """Every job goes, in whatever phase it is, and with it its pods."""
        api = self.cluster.api
        for found in api.get("/apis/rerail.dev/v1alpha1/trainingjobs")["items"]:
            with suppress(ApiError):
                api.delete(f"{jobs_path(found['metadata']['namespace'])}/{found['metadata']['name']}")
        self.until("no pod is left of any job", lambda: not self._left("/api/v1/pods"), 90)

    def check_garbage(self) -> None:
        """What a job owned is gone too. The collector learns of a new kind within half a minute: ask at the end."""
        kinds = ("/api/v1/configmaps", "/apis/apps/v1/controllerrevisions")
        self.until("nothing is left of any job", lambda: not any(self._left(kind) for kind in kinds), 90)

    def _left(self, path: str) -> list[Json]:
        owned = "app.kubernetes.io%2Fmanaged-by%3Drerail,rerail.dev%2Fjob-uid"
        return list(self.cluster.api.get(f"{path}?labelSelector={owned}")["items"])

    def evidence(self) -> str:
        """What a failed test has to show."""
        parts = []
        for words in SHOWN:
            with suppress(Exception):
                told = self.cluster.kubectl(*words, "--request-timeout=5s")
                parts.append(f"$ kubectl {' '.join(words)}\n{told[-SHOWN_BYTES:]}")
        with suppress(Exception):
            for found in self.cluster.api.get("/apis/rerail.dev/v1alpha1/trainingjobs")["items"]:
                parts.append(f"{found['metadata']['name']}: {str(found.get('status'))[:SHOWN_BYTES]}")
        return "\n\n".join(parts)
