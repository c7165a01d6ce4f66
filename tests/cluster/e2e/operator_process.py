"""The operator as a real process under the chart's own role, with the environment that its pod would have."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.rig import paths, until

SYSTEM = "rerail-system"
START_SECONDS = 60.0
PAUSE_SECONDS = 1.0  # between the end of a process and its next start, as the kubelet makes one


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class OperatorProcess:
    """One replica. Its ports stay the same over restarts; its log grows on."""

    def __init__(self, kubeconfig: Path, folder: Path, number: int) -> None:
        self.name = f"operator-{number}"
        self._kubeconfig = kubeconfig
        self._home = folder / self.name
        self._home.mkdir()
        self.log = folder / f"{self.name}.log"
        self.coordinator_port, self.probe_port, self.metrics_port = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_at = 0.0
        self.starts = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.coordinator_port}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "PYTHONPATH": f"{paths.CHECKOUT / 'operator'}:{paths.CHECKOUT / 'trainer'}",
            "KUBECONFIG": str(self._kubeconfig),
            "RERAIL_NAMESPACE": SYSTEM,
            "RERAIL_POD_NAME": self.name,
            "RERAIL_COORDINATOR_SERVICE": self.address,
            "RERAIL_COORDINATOR_PORT": str(self.coordinator_port),
            "RERAIL_PROBE_PORT": str(self.probe_port),
            "RERAIL_METRICS_PORT": str(self.metrics_port),
        }
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rerail_operator"],
                env=environment,
                cwd=self._home,
                stdout=output,
                stderr=output,
            )
        self.starts += 1

    def keep(self) -> None:
        """What the kubelet does: a process that has ended is started again after a moment."""
        if self.alive:
            self._ended_at = 0.0
        elif not self._ended_at:
            self._ended_at = time.monotonic()
        elif time.monotonic() - self._ended_at >= PAUSE_SECONDS:
            self._ended_at = 0.0
            self.start()

    def kill(self) -> None:
        """SIGKILL: nothing is written, nothing is given back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)

    def stop(self) -> None:
        """SIGTERM, as a rollout does; the exit code must then be 0."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within 40 s of SIGTERM:\n{self.tail()}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"

    def await_ready(self) -> None:
        until(
            lambda: self.readiness()[0] == 200, START_SECONDS, f"{self.name} is Ready", lambda: not self.alive
        )

    def readiness(self) -> tuple[int, str]:
        """What /readyz answers; (0, "") while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}/readyz", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def tail(self, lines: int = 40) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
