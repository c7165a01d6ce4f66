"""Where the recovery bench runs its job: real nodes under the rig, or `rerail run` on this machine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from rerail_api.contract import Env
from rerail_operator.shell.local import processes
from tests.cluster.e2e.jobs import GPU, trainer
from tests.cluster.e2e.site import SHARED, Site
from tests.cluster.rig import ControlPlane, Options
from tests.cluster.rig.images import build_images
from tests.cluster.rig.nodes import RealNodes

from .recovery import training
from .report import Json


class OnNodes:
    """A job on the nodes of a site."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self._name = site, name
        self.told: list[Json] = []
        self.lines = site.nodes.shared_on_host / f"{name}.jsonl"

    def kill(self, rank: int) -> None:
        (pid,) = self._site.ranks(sorted(self._site.pods(self._name))[rank])
        os.kill(pid, signal.SIGKILL)

    def incidents(self) -> list[Json]:
        return self.told

    def note(self) -> None:
        """Keep what the status says, for the job is about to go."""
        self.told = list(self._site.status(self._name)["incidents"])


@contextmanager
def real_nodes() -> Iterator[Site]:
    """Two nodes with the project's images and Rerail installed by its chart."""
    images = list(build_images().values())
    with ControlPlane(Options(isolated=True, node_grace_seconds=300)) as cluster:
        site = Site(cluster, cluster.real_nodes(2, gpus=8, images=images))
        site.install()
        yield site


@contextmanager
def on_nodes(site: Site, warm: str) -> Iterator[OnNodes]:
    """The bench's job on these nodes, deleted afterwards."""
    name = f"recovery-{warm.lower()}"
    manifest = training(f"{SHARED}/{name}.jsonl", warm)
    manifest["spec"]["checkpoint"]["path"] = f"{SHARED}/checkpoints/{name}"
    trainer(manifest).update(
        image="rerail-trainer:dev",
        imagePullPolicy="IfNotPresent",
        resources={"limits": {GPU: 2}},
        volumeMounts=[{"name": "shared", "mountPath": SHARED}],
    )
    volume = {"name": "shared", "hostPath": {"path": RealNodes.shared, "type": "Directory"}}
    manifest["spec"]["template"]["spec"]["volumes"] = [volume]
    site.submit(manifest)
    place = OnNodes(site, name)
    try:
        yield place
        place.note()
    finally:
        site.delete_jobs()


class OnThisMachine:
    """A job of `rerail run`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, folder / "steps.jsonl"
        self.told: list[Json] = []

    def kill(self, rank: int) -> None:
        members = processes.marked(Env.CHECKPOINT_DIR, str(self.folder / "work" / "checkpoints"))
        pid = processes.rank_process(members, rank)
        if pid is None:
            raise RuntimeError(f"rank {rank} does not run")
        os.kill(pid, signal.SIGKILL)

    def incidents(self) -> list[Json]:
        return self.told


@contextmanager
def on_this_machine(warm: str) -> Iterator[OnThisMachine]:
    """The bench's job by `rerail run`, stopped afterwards; the report then has its last 16 interruptions."""
    with tempfile.TemporaryDirectory(prefix="rerail-bench-") as name:
        place = OnThisMachine(Path(name))
        manifest, report = place.folder / "job.yaml", place.folder / "report.json"
        manifest.write_text(yaml.safe_dump(training(str(place.lines), warm)))
        words = ["run", str(manifest), "--workdir", str(place.folder / "work"), "--report", str(report)]
        running = subprocess.Popen(
            [sys.executable, "-m", "rerail_operator.shell.cli", *words], stdout=subprocess.DEVNULL
        )
        try:
            yield place
        finally:
            running.send_signal(signal.SIGINT)
            running.wait()
        place.told = json.loads(report.read_text())["incidents"]
