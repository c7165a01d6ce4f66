"""The operator as one process under its chart's service account."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.rig.paths import CHECKOUT

from .ground import SYSTEM

SERVICE = "rerail-coordinator.rerail-system.svc"
START_SECONDS = 120.0


class OperatorProcess:
    """`async with OperatorProcess(...)`: Ready and leading inside, ended in order after."""

    def __init__(self, kubeconfig: Path, log: Path, profile: Path | None = None) -> None:
        """`profile`: py-spy writes its samples (collapsed stacks) there; its cost falsifies the figures."""
        self._kubeconfig, self._log, self._profile = kubeconfig, log, profile
        self.port, self._probes, self._metrics = _free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> "OperatorProcess":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._log.parent),
            "PYTHONPATH": f"{CHECKOUT / 'operator'}:{CHECKOUT / 'trainer'}",
            "KUBECONFIG": str(self._kubeconfig),
            "RERAIL_NAMESPACE": SYSTEM,
            "RERAIL_POD_NAME": "rerail-0",
            "RERAIL_COORDINATOR_SERVICE": f"{SERVICE}:{self.port}",
            "RERAIL_COORDINATOR_PORT": str(self.port),
            "RERAIL_PROBE_PORT": str(self._probes),
            "RERAIL_METRICS_PORT": str(self._metrics),
        }
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "rerail_operator"]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await asyncio.to_thread(self._leads):
                    if self._process.poll() is not None:
                        raise RuntimeError(f"the operator has ended:\n{self.tail()}")
                    await asyncio.sleep(0.1)
        except BaseException:
            self._process.kill()
            raise
        if self._profile is not None:
            spy = [
                "py-spy",
                "record",
                "--pid",
                str(self.pid),
                "--format",
                "raw",
                "--rate",
                "200",
                "--threads",
            ]
            subprocess.Popen([*spy, "--duration", "3600", "--output", str(self._profile)])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, 40)
        except subprocess.TimeoutExpired:
            self._process.kill()

    async def ended(self) -> None:
        """Until the process ends, which it must not while it is measured. Raises RuntimeError then."""
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(0.5)
        raise RuntimeError(f"the operator has ended by itself:\n{self.tail(5)}")

    def tail(self, lines: int = 40) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def figures(self) -> dict[str, float]:
        """Its metrics without labels."""
        found = re.findall(r"^(rerail_\w+) (\S+)$", _get(self._metrics, "/metrics"), re.MULTILINE)
        return {name: float(value) for name, value in found}

    def _leads(self) -> bool:
        return bool(_get(self._probes, "/readyz")) and self.figures().get("rerail_leader") == 1.0


def _get(port: int, path: str) -> str:
    """The answer with status 200; empty otherwise."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return str(reply.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
