"""Where the processes of a rig stand: on the host's loopback, or in namespaces of their own.

`HostGround` needs no rights and serves control planes. `IsolatedGround` needs root and serves real
nodes: its network, mounts, `/run`, `/var/lib`, process numbers and kernel settings are private, a
veth pair is the only way in or out, and when its first process dies everything in it dies too.
"""

import fcntl
import os
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from .binaries import ensure
from .errors import CommandFailed, Missing, RigError
from .lifeline import Lifeline, started
from .paths import cache
from .process import Process, only_child, start_detached, until

# The kubelet sets these for the whole machine. Covered by files that already hold what it wants,
# inside our mount namespace only, so that it finds nothing to change.
_KUBELET_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_PORTS = range(20000, 30000)
SHARED = "/var/lib/rerail-shared"
_HIDDEN = ("/run", "/var/lib")


class Ground(Protocol):
    """What a component needs to know of the place it runs in."""

    address: str
    listen: str
    processes: list[Process]
    claims: list[IO[str]]

    def port(self, usual: int) -> int:
        """A free port; the usual one where nobody else can have taken it."""

    def start(self, name: str, argv: list[str], environment: dict[str, str] | None = None) -> Process:
        """Start a long-running process that ends with the rig, whatever happens; its log is LOGS/NAME.log."""

    def run(self, argv: list[str], stdin: str | None = None) -> str:
        """Run a command to its end and return what it wrote. Raises CommandFailed."""


@dataclass
class HostGround:
    """Loopback of the host, free ports, plain processes."""

    logs: Path
    lifeline: Lifeline
    address: str = "127.0.0.1"
    listen: str = "127.0.0.1"
    processes: list[Process] = field(default_factory=list)
    claims: list[IO[str]] = field(default_factory=list)

    def port(self, usual: int) -> int:
        """A port that is free and that no other rig will take while this one lives.

        Below the ephemeral range, so that no outgoing connection can take it before its server does."""
        folder = cache() / "ports"
        folder.mkdir(exist_ok=True)
        for port in range(_PORTS.start + os.getpid() * 8 % len(_PORTS), _PORTS.stop):
            claim = (folder / str(port)).open("w")
            with suppress(BlockingIOError):
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_free(port):
                    self.claims.append(claim)
                    return port
            claim.close()
        raise RigError("no free port")

    def _is_free(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do; TIME_WAIT is no obstacle
            try:
                probe.bind((self.address, port))
            except OSError:
                return False
        return True

    def start(self, name: str, argv: list[str], environment: dict[str, str] | None = None) -> Process:
        """See Ground."""
        log = self.logs / f"{name}.log"
        popen = start_detached(argv, log, environment or {})
        self.lifeline.watch_process(popen.pid)
        self.processes.append(Process(name, argv, popen.pid, log, popen))
        return self.processes[-1]

    def run(self, argv: list[str], stdin: str | None = None) -> str:
        """See Ground."""
        return run(argv, stdin)


@dataclass
class IsolatedGround:
    """Namespaces of our own; `address` is reachable from the host over a veth pair."""

    logs: Path
    folder: Path
    lifeline: Lifeline
    address: str = ""
    gateway: str = ""
    link: str = ""
    pod_range: str = ""
    listen: str = "0.0.0.0"
    processes: list[Process] = field(default_factory=list)
    claims: list[IO[str]] = field(default_factory=list)
    _first: int = 0

    def open(self) -> None:
        """Make the namespaces. Raises Missing without the rights or tools, RigError beside foreign nodes."""
        require_isolation()
        pause = ensure(["pause"])["pause"]
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["--propagation", "private", "--", str(pause)]
        log = self.logs / "namespaces.log"
        popen = start_detached(argv, log, {})
        self.processes.append(Process("namespaces", argv, popen.pid, log, popen))
        self.lifeline.watch_process(popen.pid)
        try:
            self._first = only_child(popen.pid)
            until(self._is_inside, 5, "the namespaces open", lambda: started(self._first) is None)
        except RigError as failure:
            raise Missing(
                "this machine does not allow new namespaces (real nodes need root outside of a container, "
                f"or a privileged one): {log.read_text().strip() or failure}"
            ) from None
        self.lifeline.watch_process(self._first)
        self._mounts()
        self._network()

    def port(self, usual: int) -> int:
        """The usual port: nobody else lives here."""
        return usual

    def start(self, name: str, argv: list[str], environment: dict[str, str] | None = None) -> Process:
        """See Ground. The process's own pid is given, not that of the program that entered the namespaces."""
        log = self.logs / f"{name}.log"
        popen = start_detached(self._enter(argv), log, environment or {})
        self.lifeline.watch_process(popen.pid)
        pid = only_child(popen.pid)
        self.lifeline.watch_process(pid)
        self.processes.append(Process(name, argv, pid, log, popen))
        return self.processes[-1]

    def run(self, argv: list[str], stdin: str | None = None) -> str:
        """See Ground."""
        return run(self._enter(argv), stdin)

    @property
    def enter(self) -> list[str]:
        """The words to put before a command so that it runs in here."""
        return self._enter([])

    def holds(self, pid: int) -> bool:
        """Whether a process (in the host's number) lives in here."""
        try:
            return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{self._first}/ns/mnt")
        except OSError:
            return False

    def _enter(self, argv: list[str]) -> list[str]:
        return ["nsenter", "-t", str(self._first), "-n", "-m", "-p", "--", *argv]

    def _is_inside(self) -> bool:
        try:
            theirs = os.readlink(f"/proc/{self._first}/ns/net")
            executable = os.readlink(f"/proc/{self._first}/exe")
        except OSError:
            return False
        return theirs != os.readlink("/proc/self/ns/net") and Path(executable).name == "pause"

    def _mounts(self) -> None:
        for hidden in _HIDDEN:
            if cache().is_relative_to(hidden):
                raise RigError(f"real nodes hide {hidden}: set RERAIL_CACHE to a folder elsewhere")
        shared, tunables = self.folder / "shared", self.folder / "tunables"
        shared.mkdir(parents=True, exist_ok=True)
        shared.chmod(0o1777)  # any user of any pod may make its folder there
        tunables.mkdir(exist_ok=True)
        script = ["set -e", *(f"mount -t tmpfs -o mode=755 rig {hidden}" for hidden in _HIDDEN)]
        script += [f"mkdir -p /run/lock {SHARED}", f"mount --bind {shared} {SHARED}"]
        for key, value in _KUBELET_TUNABLES.items():
            cover = tunables / key.replace("/", ".")
            cover.write_text(value + "\n")
            script.append(f"[ ! -e /proc/sys/{key} ] || mount --bind {cover} /proc/sys/{key}")
        script.append("mount --make-rshared /")
        self.run(["sh", "-c", "\n".join(script)])

    def _network(self) -> None:
        index = _claim_link()
        host_end, inner_end = link_names(index)
        self.link = host_end
        self.lifeline.watch_link(host_end)
        link, pods = f"10.239.{index}", f"10.{240 + index}"
        self.gateway, self.address, self.pod_range = f"{link}.1", f"{link}.2", f"{pods}.0.0/16"
        run(["ip", "link", "set", inner_end, "netns", str(self._first)])
        run(["ip", "address", "add", f"{self.gateway}/30", "dev", host_end])
        run(["ip", "link", "set", host_end, "up"])
        inside = [
            "set -e",
            "ip link set lo up",
            f"ip link set {inner_end} name uplink",
            f"ip address add {self.address}/30 dev uplink",
            "ip link set uplink up",
            # Service addresses are rewritten after routing: there must be a route, though nothing uses it.
            "ip link add void type veth peer name void-end",
            "ip link set void up && ip link set void-end up",
            "ip route add default dev void",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "for f in /proc/sys/net/bridge/bridge-nf-call-iptables; do [ ! -e $f ] || echo 1 > $f; done",
            f"iptables -t nat -A POSTROUTING -s {self.pod_range} -o uplink -j MASQUERADE",
        ]
        self.run(["sh", "-c", "\n".join(inside)])
        run(["ip", "route", "add", self.pod_range, "via", self.address, "dev", host_end])


def link_names(index: int) -> tuple[str, str]:
    """The two ends of a rig's link: the host's and the inner one."""
    return f"rerail{index}", f"rerail{index}i"


def _claim_link() -> int:
    """Making a link is atomic, so its name is the lock on its addresses."""
    routes = run(["ip", "-4", "route", "show", "table", "all"])
    problem = "all are taken"
    for index in range(15):
        if f"10.{240 + index}." in routes or f"10.239.{index}." in routes:
            continue
        host_end, inner_end = link_names(index)
        try:
            run(["ip", "link", "add", host_end, "type", "veth", "peer", "name", inner_end])
        except CommandFailed as failure:
            problem = failure.stderr.strip()
            continue
        return index
    raise RigError(f"no free link to the host between rerail0 and rerail14: {problem}")


def require_isolation() -> None:
    """Raise Missing or RigError unless real nodes can live here, saying what helps."""
    if os.geteuid() != 0:
        raise Missing("real nodes need root (namespaces, mounts, containers): run as root, e.g. with sudo -E")
    needed = {
        "unshare": "util-linux",
        "nsenter": "util-linux",
        "ip": "iproute2",
        "iptables": "iptables",
        "conntrack": "conntrack",
        "runc": "runc",
    }
    install(needed)
    foreign = foreign_nodes()
    if foreign:
        raise RigError(
            f"another node's {foreign} runs on this machine; real nodes do not start beside it: "
            "stop it, or use a machine of its own"
        )


def install(needed: dict[str, str]) -> None:
    """See that these commands exist. With RERAIL_TEST_HOST=1 their Debian packages are installed, else Missing."""
    absent = sorted({package for command, package in needed.items() if shutil.which(command) is None})
    if not absent:
        return
    command = f"apt-get install -y --no-install-recommends {' '.join(absent)}"
    if os.environ.get("RERAIL_TEST_HOST") != "1" or shutil.which("apt-get") is None:
        raise Missing(
            f"missing on this machine: {', '.join(absent)}. On Debian: {command} (or set RERAIL_TEST_HOST=1)"
        )
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    run([*quiet, "apt-get", "update", "-qq"])
    run([*quiet, *command.split(), "-qq"])


def foreign_nodes(processes: Path = Path("/proc")) -> str | None:
    """A kubelet or kube-proxy that no rig has built, named with its process number; None where there is none."""
    for folder in processes.glob("[0-9]*"):
        try:
            executable = Path(os.readlink(folder / "exe"))
        except OSError:
            continue  # a kernel thread, or gone
        if executable.name not in {"kubelet", "kube-proxy"}:
            continue
        if not re.fullmatch(rf"{executable.name}-v[0-9.]+-[0-9a-f]{{12}}", executable.parent.name):
            return f"{executable.name} (process {folder.name})"
    return None


def run(argv: list[str], stdin: str | None = None) -> str:
    """Run a command on the host to its end and return its standard output. Raises CommandFailed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
    return done.stdout
