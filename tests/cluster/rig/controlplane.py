"""A whole control plane: etcd, kube-apiserver, kube-scheduler, kube-controller-manager.

    with ControlPlane() as cluster:
        cluster.kwok(4, gpus=8)
        cluster.kubectl("get", "nodes")

Ready in seconds. Everything ends with the `with` block, and also when this process is killed.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import components
from .api import ApiClient, ApiError
from .binaries import ensure
from .components import Options, Wiring
from .console import hint
from .errors import CommandFailed, RigError
from .ground import HostGround, IsolatedGround, install, run
from .kwok import FakeNodes, Labels
from .lifeline import Lifeline
from .paths import disk_folder, fast_folder
from .pki import Authority
from .process import Process, until

if TYPE_CHECKING:
    from .nodes import RealNodes
    from .storage import StoredImage

_READY_SECONDS = 60.0


class ControlPlane:
    """One control plane and what was added to it. `start` and `close`, or a `with` block."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.processes: dict[str, Process] = {}
        self.nodes: RealNodes | None = None
        self._fakes: FakeNodes | None = None
        self._closed = False

    # ---- life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start everything and wait until pods can be created. Cleans up after itself when that fails."""
        install({"openssl": "openssl"})
        began = time.monotonic()
        self._binaries = ensure(
            ["etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl"]
        )
        self.folder = fast_folder("rerail-rig-")
        self.disk = disk_folder(self.folder.name)
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self.lifeline = Lifeline(self.logs / "lifeline.log")
        self.lifeline.watch_path(self.folder)
        self.lifeline.watch_path(self.disk)
        try:
            self._start_ground()
            self._write_files()
            self._start_components()
        except BaseException:
            hint(self.logs_on_failure())
            self.close()
            raise
        hint(f"control plane at {self.url} after {time.monotonic() - began:.1f} s")

    def close(self) -> None:
        """End everything and remove every file. Safe to call twice.

        With RERAIL_RIG_LOGS=FOLDER the logs are copied there first."""
        if self._closed or not hasattr(self, "lifeline"):
            return
        self._closed = True
        if keep := os.environ.get("RERAIL_RIG_LOGS"):
            shutil.copytree(self.logs, Path(keep) / self.folder.name, dirs_exist_ok=True)
        if hasattr(self, "api"):
            self.api.close()
        self.lifeline.close()
        if hasattr(self, "ground"):
            for process in self.ground.processes:
                process.popen.wait(timeout=30)
            for claim in self.ground.claims:
                claim.close()
        if self.nodes is not None:
            self.nodes.release()

    # ---- what people use ----------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The API server's address, reachable from the host."""
        return self.wiring.url

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig (system:masters)."""
        return self.folder / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """JSON lines of every request, where Options.audit is set."""
        return self.wiring.audit_log

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run the real kubectl as administrator; what it printed. Raises CommandFailed with its words."""
        argv = [str(self._binaries["kubectl"]), f"--kubeconfig={self.kubeconfig}"]
        return run([*argv, f"--cache-dir={self.folder / 'kubectl-cache'}", *args], stdin)

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl apply` of these objects."""
        return self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def get(self, *args: str) -> Any:
        """`kubectl get ARGS -o json`, decoded."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def helm(self, *args: str) -> str:
        """Run the real helm as administrator; what it printed. Raises CommandFailed with its words."""
        home = self.folder / "helm"
        environment = [f"HELM_{part}_HOME={home / part.lower()}" for part in ("CACHE", "CONFIG", "DATA")]
        binary = ensure(["helm"])["helm"]
        return run(["env", *environment, f"KUBECONFIG={self.kubeconfig}", str(binary), *args])

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a fresh 24 h token of this service account, which must exist."""
        token = self.kubectl("create", "token", name, "-n", namespace, "--duration=24h").strip()
        path = self.folder / f"sa-{namespace}-{name}.kubeconfig"
        return self.authority.kubeconfig(path, self.url, token)

    def kwok(self, n_nodes: int, gpus: int = 8, labels: Labels = None, prefix: str = "kwok-") -> list[str]:
        """Add this many pretended nodes and wait until they are Ready; their names. See kwok.FakeNodes."""
        if self._fakes is None:
            self._fakes = FakeNodes(self.api, self.folder, self.ground, self.kubeconfig)
            self._fakes.start()
        return self._fakes.add(n_nodes, gpus, labels, prefix)

    def real_nodes(self, count: int = 2, gpus: int = 8, images: "Iterable[StoredImage]" = ()) -> "RealNodes":
        """Add real nodes (kubelet, containerd, runc) with kube-proxy and CoreDNS, and wait until all are Ready.

        `images` (of `images.build_images`) are there from the start: quicker than `import_image`, and stored once. Needs `Options(isolated=True)` and root."""
        from .nodes import RealNodes

        if not isinstance(self.ground, IsolatedGround):
            raise RigError("real nodes need ControlPlane(Options(isolated=True))")
        if self.nodes is not None:
            raise RigError("this cluster already has its real nodes")
        self.nodes = RealNodes(self, self.ground)
        try:
            self.nodes.start(count, gpus, images)
        except BaseException:
            hint(self.logs_on_failure())
            raise
        return self.nodes

    def wait(self, what: str, look: Any, seconds: float = 60.0) -> Any:
        """Poll `look()` until it answers something true, and return that. Raises RigError after `seconds`."""
        return until(look, seconds, what)

    # ---- faults ---------------------------------------------------------------------------------

    def pause_apiserver(self) -> None:
        """Stop the API server's process: connections stay open and nothing answers."""
        self.processes["kube-apiserver"].signal(signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        """Let it run again."""
        self.processes["kube-apiserver"].signal(signal.SIGCONT)

    def kill_apiserver(self) -> None:
        """Kill it: connections break and new ones are refused until `start_apiserver`."""
        self.processes.pop("kube-apiserver").kill()

    def start_apiserver(self) -> None:
        """Start it on the same port and wait until it serves."""
        argv = components.apiserver(self._binaries["kube-apiserver"], self.wiring, self.options)
        process = self.processes["kube-apiserver"] = self.ground.start("kube-apiserver", argv)
        until(self._serves, _READY_SECONDS, "the API server is ready", lambda: not process.alive)

    def restart_apiserver(self) -> None:
        """Kill it and start it again."""
        self.kill_apiserver()
        self.start_apiserver()

    # ---- evidence ---------------------------------------------------------------------------------

    def logs_on_failure(self, lines: int = 15) -> str:
        """The last lines of every component's log, for a failed test's report."""
        parts = [f"rig logs in {self.logs} (copied to $RERAIL_RIG_LOGS at the end, where that is set)"]
        for path in sorted(self.logs.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"---- {path.name}\n" + "\n".join(line[:300] for line in tail))
        return "\n".join(parts)

    # ---- steps of the start -----------------------------------------------------------------------

    def _start_ground(self) -> None:
        self.ground: HostGround | IsolatedGround
        if self.options.isolated:
            self.ground = isolated = IsolatedGround(self.logs, self.disk, self.lifeline)
            isolated.open()
        else:
            self.ground = HostGround(self.logs, self.lifeline)

    def _write_files(self) -> None:
        self.authority = Authority(self.folder / "pki")
        self.authority.found()
        known = components.identities(self.authority, self.ground.address)
        ground = self.ground
        self.wiring = Wiring(
            *(self.folder, self.authority, ground.address, ground.listen),
            *(ground.port(6443), ground.port(2379), ground.port(2380)),
        )
        for name in ("admin", "kube-controller-manager", "kube-scheduler"):
            self.authority.kubeconfig(self.folder / f"{name}.kubeconfig", self.url, known[name])
        scheduler = components.scheduler_config(self.folder / "kube-scheduler.kubeconfig")
        (self.folder / "scheduler.json").write_text(json.dumps(scheduler))
        (self.folder / "audit-policy.json").write_text(json.dumps(components.AUDIT_POLICY))
        self.api = ApiClient.for_identity(self.url, str(self.authority.certificate), known["admin"])

    def _start_components(self) -> None:
        start, ground = self.ground.start, self.ground
        self.processes["etcd"] = start("etcd", components.etcd(self._binaries["etcd"], self.wiring))
        self.start_apiserver()
        name = "kube-controller-manager"
        port = ground.port(10257)
        argv = components.controller_manager(self._binaries[name], self.wiring, self.options, port)
        self.processes[name] = start(name, argv)
        name = "kube-scheduler"
        argv = components.scheduler(self._binaries[name], self.wiring, ground.port(10259))
        self.processes[name] = start(name, argv)
        until(self._usable, _READY_SECONDS, "the default namespace is usable", self._any_ended)

    def _serves(self) -> bool:
        try:
            return bool(self.api.get("/readyz") == "ok")
        except (ApiError, OSError):
            return False

    def _usable(self) -> bool:
        """Pods need their namespace's service account, and the authority that is mounted beside its token."""
        base = "/api/v1/namespaces/default"
        try:
            return bool(
                self.api.get(f"{base}/serviceaccounts/default")
                and self.api.get(f"{base}/configmaps/kube-root-ca.crt")
            )
        except (ApiError, OSError):
            return False

    def _any_ended(self) -> bool:
        return any(not process.alive for process in self.processes.values())


__all__ = ["CommandFailed", "ControlPlane", "Options"]
