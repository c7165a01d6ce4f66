"""The long-running form: a cluster that stays after the command has ended, for `make cluster`.

`up` leaves one process behind that owns the cluster; `down` asks it to end. What a shell needs lies in
the rig's cache: `cluster.json` (who owns it), `cluster.kubeconfig`, `cluster.log`.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import console, paths
from .components import Options
from .controlplane import ControlPlane
from .errors import RigError
from .ground import require_isolation
from .images import build_images
from .lifeline import started
from .process import start_detached, until

_UP_SECONDS = 3600.0  # a first start builds every binary and image
NAMESPACE = "rerail-system"
TO_TRY = (
    "  kubectl apply -f examples/01-recover/job.yaml",
    "  kubectl get tj -w",
    "  kubectl describe tj recover",
)


@dataclass(frozen=True)
class Wish:
    """What cluster is asked for. install: Rerail from the checkout's chart, with the chart's defaults."""

    nodes: int
    gpus: int
    images: bool
    install: bool


def up(wish: Wish) -> int:
    """Start the cluster, show how it comes along, and print the line that a shell needs. 0, or an error."""
    require_isolation()
    if _owner() is not None:
        console.say("it runs already")
        return status()
    for file in (_state(), _log()):
        file.unlink(missing_ok=True)
    _log().touch()
    argv = [sys.executable, "-m", "tests.cluster.rig", "serve", json.dumps(asdict(wish))]
    process = start_detached(argv, _log(), {"PYTHONPATH": str(paths.CHECKOUT), "PYTHONUNBUFFERED": "1"})
    with _log().open() as log:

        def ready() -> bool:
            sys.stderr.write(log.read())
            return _state().exists()

        try:
            until(ready, _UP_SECONDS, "the cluster is up", lambda: process.poll() is not None)
        except RigError:
            sys.stderr.write(log.read())
            if process.poll() is None:
                raise
            return process.returncode or 1
        sys.stderr.write(log.read())
    if wish.install:
        console.say("\n".join(["Rerail is installed; set KUBECONFIG as below, then try:", *TO_TRY]))
    return status()


def down() -> int:
    """End the cluster. 0 also where none runs."""
    owner = _owner()
    if owner is None:
        console.say("no cluster runs")
        return 0
    with suppress(ProcessLookupError):
        os.kill(owner, signal.SIGTERM)
    until(lambda: started(owner) is None, 120, "the cluster ends")
    console.say("the cluster is gone")
    return 0


def status() -> int:
    """Print how to reach the cluster; 1 where none runs."""
    owner = _owner()
    if owner is None:
        console.say("no cluster runs; start one with: make cluster")
        return 1
    state = json.loads(_state().read_text())
    console.say(f"cluster at {state['url']}, owned by process {owner}, logs in {state['logs']}")
    console.result(f"export KUBECONFIG={_kubeconfig()}")
    return 0


def serve(wish: Wish) -> int:
    """Own a cluster until SIGTERM or SIGINT comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    began = time.monotonic()
    images = list(build_images().values()) if wish.images or wish.install else []
    with ControlPlane(Options(isolated=True)) as cluster:
        cluster.real_nodes(wish.nodes, wish.gpus, images)
        shutil.copy(cluster.kubeconfig, _kubeconfig())
        if wish.install:
            install(cluster)
        console.say(f"the cluster is up after {time.monotonic() - began:.0f} s")
        state = {
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "url": cluster.url,
            "logs": str(cluster.logs),
        }
        partial = _state().with_suffix(".partial")
        partial.write_text(json.dumps(state))
        partial.rename(_state())
        try:
            while True:
                signal.pause()
        finally:
            _state().unlink(missing_ok=True)


def _end(number: int, _: object) -> None:
    """Unwind, so that the cluster is closed wherever we are; a second signal must not disturb that."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def install(cluster: ControlPlane, *settings: str) -> str:
    """`helm upgrade --install --wait` of the checkout's chart with the rig's operator image; helm's words.

    `settings` are further arguments, such as "--set", "replicas=1"."""
    image = ["--set", "image.repository=rerail-operator", "--set", "image.tag=dev"]
    chart = str(paths.CHECKOUT / "helm" / "rerail")
    where = ["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "180s"]
    return cluster.helm("upgrade", "--install", "rerail", chart, *where, *image, *settings)


def _owner() -> int | None:
    """The live owner's pid."""
    try:
        state = json.loads(_state().read_text())
    except FileNotFoundError:
        return None
    return int(state["pid"]) if started(state["pid"]) == state["started"] else None


def _state() -> Path:
    return paths.cache() / "cluster.json"


def _kubeconfig() -> Path:
    return paths.cache() / "cluster.kubeconfig"


def _log() -> Path:
    return paths.cache() / "cluster.log"
