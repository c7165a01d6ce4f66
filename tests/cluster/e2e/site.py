"""The site: real nodes, images of the project's own Dockerfile, the chart installed with its defaults."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.rig import ControlPlane
from tests.cluster.rig.daemon import install
from tests.cluster.rig.nodes import RealNodes

from .jobs import GPU, Json
from .operator_process import SYSTEM
from .watching import Watching

SHARED = "/shared"
STEPS = 200
SAVE_EVERY = 10
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/rerail"
OPERATOR_LINES = 40


def training(name: str, nodes: int = 2, nproc: int = 1, steps: int = STEPS) -> Json:
    """The real trainer on the CPU: small steps, every step's loss in a file that the test can read."""
    container = {
        "name": "trainer",
        "image": "rerail-trainer:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": [
            *("python", "-m", "rerail_trainer", "--preset", "tiny", f"--train.steps={steps}"),
            *("--batch.tokens_per_step=512", f"--checkpoint.every_steps={SAVE_EVERY}"),
            f"--metrics.jsonl={SHARED}/{name}.jsonl",
        ],
        # All nodes share this machine's cores: more threads than ranks would only fight.
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": {"limits": {GPU: 2}},
        "volumeMounts": [{"name": "shared", "mountPath": SHARED}],
    }
    volume = {"name": "shared", "hostPath": {"path": RealNodes.shared, "type": "Directory"}}
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "numNodes": nodes,
            "numProcPerNode": nproc,
            "template": {"spec": {"containers": [container], "volumes": [volume]}},
            "checkpoint": {"path": f"{SHARED}/checkpoints/{name}", "graceSeconds": 30},
        },
    }


class Site(Watching):
    """What a test of the real ring works with."""

    def __init__(self, cluster: ControlPlane, nodes: RealNodes) -> None:
        super().__init__(cluster)
        self.nodes = nodes

    def install(self, *settings: str) -> None:
        """`helm upgrade --install --wait`: returns once both replicas are Ready."""
        install(self.cluster, *settings)

    # ---- losses -----------------------------------------------------------------------------------------

    def printed(self, name: str) -> list[tuple[int, str]]:
        """(step, loss) as rank 0 wrote them, in the order of writing; a line half written is left out."""
        file = self._file(name)
        lines = file.read_text().splitlines() if file.exists() else []
        found = []
        for line in lines:
            with suppress(json.JSONDecodeError):
                told = json.loads(line)
                if "event" not in told:  # starts, saves and ends stand between the steps
                    found.append((int(told["step"]), repr(told["loss"])))
        return found

    def losses(self, name: str) -> dict[int, str]:
        """Loss by step; a step that was made again after a restart must have given the same, to the last bit."""
        found: dict[int, str] = {}
        for step, loss in self.printed(name):
            assert found.setdefault(step, loss) == loss, f"step {step} was {found[step]} and became {loss}"
        return found

    def step(self, name: str) -> int:
        """The newest step."""
        printed = self.printed(name)
        return printed[-1][0] if printed else 0

    def until_step(self, name: str, step: int, seconds: float = 90.0) -> None:
        self.until(f"{name} makes step {step}", lambda: self.step(name) >= step, seconds)

    def _file(self, name: str) -> Path:
        return self.nodes.shared_on_host / f"{name}.jsonl"

    # ---- processes --------------------------------------------------------------------------------------

    def ranks(self, pod: str) -> list[int]:
        """The host's process numbers of a pod's ranks, without the writers beside them."""
        found = self.nodes.pids("default", pod, "trainer", matching="rerail_trainer")
        told = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in found}
        return [
            pid
            for pid, words in told.items()
            if "agent.pyz" not in words and "rerail_trainer.checkpoint.writer" not in words
        ]

    def agent(self, pod: str) -> int:
        """The host's process number of a pod's agent, PID 1 of its container."""
        return self.nodes.pids("default", pod, "trainer", matching="agent.pyz")[0]

    def user(self, pod: str) -> int:
        """Whose processes run in a pod of the operator."""
        (operator,) = self.nodes.pids(SYSTEM, pod, matching="rerail_operator")
        return Path(f"/proc/{operator}").stat().st_uid

    def leaders_node(self) -> str:
        """The node on which the leading operator runs."""
        holder = str(self.cluster.api.get(LEASE)["spec"]["holderIdentity"]).partition("_")[0]
        return str(self.cluster.get("pod", holder, "-n", SYSTEM)["spec"]["nodeName"])

    @contextmanager
    def cordoned(self, node: str) -> Iterator[None]:
        self.cluster.kubectl("cordon", node)
        try:
            yield
        finally:
            self.cluster.kubectl("uncordon", node)

    def evidence(self) -> str:
        parts = [super().evidence()]
        words = (
            "logs",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/name=rerail",
            "--prefix",
            f"--tail={OPERATOR_LINES}",
        )
        with suppress(Exception):
            parts.append("operators:\n" + self.cluster.kubectl(*words))
        with suppress(Exception):
            for pod in self.cluster.get("pods")["items"]:
                name = pod["metadata"]["name"]
                parts.append(f"log of {name}:\n" + self.cluster.kubectl("logs", name, "--tail=15"))
        with suppress(Exception):
            parts.append(subprocess.run(["uptime"], capture_output=True, text=True).stdout)
        return "\n\n".join(parts)
