"""containerd of one node: start it, talk to it, give it images."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from .errors import CommandFailed
from .ground import IsolatedGround
from .node_files import NodePlan
from .process import Process, until
from .storage import StoredImage

Image = Path | StoredImage
"""What a node can be given: an archive (docker or OCI) or an image in buildah's store."""


class Runtime:
    """One containerd. Its files were written by node_files."""

    def __init__(self, ground: IsolatedGround, plan: NodePlan, ctr: Path) -> None:
        self._ground, self._plan, self._ctr = ground, plan, ctr

    def start(self) -> Process:
        """Start it and wait until it answers."""
        plan = self._plan
        path = f"{plan.folder / 'bin'}:{os.environ['PATH']}"  # where it looks for its shim
        argv = [str(plan.folder / "bin" / "containerd"), "--config", str(plan.folder / "containerd.toml")]
        process = self._ground.start(f"containerd-{plan.name}", argv, {"PATH": path})

        def answers() -> bool:
            with suppress(CommandFailed):
                return "Server:" in self.ctr("version")
            return False

        until(answers, 60, f"containerd of {plan.name} answers", lambda: not process.alive)
        return process

    def ctr(self, *args: str) -> str:
        """Run ctr in the kubelet's namespace of it."""
        return self._ground.run(self._command(*args))

    def load(self, image: Image) -> None:
        """Import and unpack an image; of one in buildah's store only the layers that are not here yet are sent."""
        if isinstance(image, Path):
            self.ctr("images", "import", "--local", str(image))
            return
        argv = self._command("images", "import", "--local", "--discard-unpacked-layers", "-")
        command = [*self._ground.enter, *argv]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # then its own words say why it left
                with process.stdin as stream:
                    image.write(stream, present=self.stacks())
            said = process.stdout.read().decode(errors="replace")
        if process.returncode != 0:
            raise CommandFailed(command, process.returncode, said, "")

    def stacks(self) -> set[str]:
        """The stacks of layers that are unpacked here (Layer.chain)."""
        lines = self.ctr("snapshots", "--snapshotter", "overlayfs", "ls").splitlines()[1:]
        return {words[0] for line in lines if (words := line.split())[-1:] == ["Committed"]}

    def image_names(self) -> set[str]:
        """The full names of the images that are here."""
        return set(self.ctr("images", "ls", "-q").split())

    def tag(self, name: str, other: str) -> None:
        """Give an image another name too."""
        self.ctr("images", "tag", "--force", name, other)

    def remove(self, name: str) -> None:
        """Forget an image."""
        self.ctr("images", "rm", name)

    def collect(self) -> None:
        """Remove what no image needs, now."""
        lease = self.ctr("leases", "create").strip()
        self.ctr("leases", "rm", "--sync", lease)

    def _command(self, *args: str) -> list[str]:
        return [str(self._ctr), "-a", str(self._plan.socket), "-n", "k8s.io", *args]
