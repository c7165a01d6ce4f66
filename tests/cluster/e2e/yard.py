"""The yard: a control plane with the chart's role and CRD, pretended nodes, operators as processes, stand-in agents."""

from pathlib import Path

from tests.cluster.rig import ControlPlane, paths

from .jobs import pods_path
from .operator_process import SYSTEM, OperatorProcess
from .standins import StandIns
from .watching import Watching


class Yard(Watching):
    """What a test of the control-plane ring works with."""

    def __init__(self, cluster: ControlPlane, folder: Path, nodes: int) -> None:
        super().__init__(cluster)
        self._folder = folder
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

    # ---- faults -----------------------------------------------------------------------------------------

    def annotate(self, pod: str, **notes: str | None) -> None:
        """Tell kwok how this pod is to behave: fail="137", hang_terminating="yes"; None takes it back."""
        told = {f"rerail.dev/kwok-{key.replace('_', '-')}": value for key, value in notes.items()}
        self.cluster.api.patch(f"{pods_path()}/{pod}", {"metadata": {"annotations": told}})

    def node_not_ready(self, node: str, yes: bool = True) -> None:
        note = {"rerail.dev/kwok-not-ready": "yes" if yes else None}
        self.cluster.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": note}})

    def evidence(self) -> str:
        parts = [f"agents:\n{self.agents.describe()}", super().evidence()]
        parts += [
            f"{one.name} (alive: {one.alive}, starts: {one.starts})\n{one.tail()}" for one in self.operators
        ]
        return "\n\n".join(parts)
