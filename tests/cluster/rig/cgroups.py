"""Control groups of the nodes, on either version of the interface.

Version 1 has one tree per controller, version 2 a single one. Each node owns one group at the root, so that
the kubelets of one machine do not meet, and everything of a node can be found, and killed, by its group.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def version() -> int:
    """Which interface this machine has: 1 (also the hybrid layout, which kubelet and runc take for 1) or 2."""
    return 2 if (_ROOT / "cgroup.controllers").exists() else 1


@dataclass(frozen=True)
class NodeGroup:
    """The group of one node; `name` is its path below the root."""

    name: str

    @property
    def folders(self) -> list[Path]:
        """Its folder in every tree."""
        if version() == 2:
            return [_ROOT / self.name]
        return [
            tree / self.name for tree in sorted(_ROOT.iterdir()) if not tree.is_symlink() and tree.is_dir()
        ]

    def create(self) -> None:
        """Make the group; the kubelet expects to find it."""
        for folder in self.folders:
            if version() == 2:
                _delegate(folder.parent)
            folder.mkdir(exist_ok=True)
            if version() == 2:
                _delegate(folder)
            # A fresh cpuset of version 1 is empty and takes no process.
            for key in ("cpuset.cpus", "cpuset.mems"):
                if version() == 1 and (folder / key).exists():
                    (folder / key).write_text((folder.parent / key).read_text())

    def pids(self, below: str = "") -> list[int]:
        """All processes in the group (in host numbers), or of those of its groups whose path contains `below`."""
        tree = self.folders[0] if version() == 2 else _ROOT / "pids" / self.name
        found: set[int] = set()
        for procs in tree.rglob("cgroup.procs"):
            if below in str(procs):
                with contextlib.suppress(OSError):  # a group may go while we read
                    found.update(int(pid) for pid in procs.read_text().split())
        return sorted(found)


def _delegate(folder: Path) -> None:
    """Version 2: let the children of this group have every controller that it has."""
    offered = (folder / "cgroup.controllers").read_text().split()
    for controller in offered:
        with contextlib.suppress(OSError):  # one that is used elsewhere cannot be given; the others can
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
