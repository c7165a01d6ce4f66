"""Who spent what: CPU seconds and memory from /proc, requests from the API server's audit log."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

TICKS = os.sysconf("SC_CLK_TCK")
OPERATOR = "system:serviceaccount:rerail-system:rerail"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0.0 once it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_rss_bytes(pid: int) -> int:
    """The most memory that the process ever held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def busy_seconds() -> float:
    """CPU time that the whole machine has spent on anything."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _, _, irq, softirq = (int(value) for value in first[1:8])
    return (user + nice + system + irq + softirq) / TICKS


class _User(msgspec.Struct):
    username: str = ""


class _Reference(msgspec.Struct):
    resource: str = ""
    subresource: str = ""


class _Status(msgspec.Struct):
    code: int = 0


class _Audited(msgspec.Struct, rename="camel"):
    verb: str = ""
    stage: str = ""
    user: _User = msgspec.field(default_factory=_User)
    object_ref: _Reference = msgspec.field(default_factory=_Reference)
    response_status: _Status = msgspec.field(default_factory=_Status)


@dataclass(frozen=True)
class Requests:
    """Requests of one stretch of time."""

    operator: dict[str, int]  # "create pods" -> how many
    writes_by_all: int
    throttled: int  # answered 429


class AuditLog:
    """Counts what was written since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._decode = msgspec.json.Decoder(_Audited).decode

    def skip(self) -> None:
        """The next look begins here."""
        self._offset = self._path.stat().st_size

    def look(self) -> Requests:
        """Everything since the last look or skip."""
        operator: Counter[str] = Counter()
        writes = throttled = 0
        for event in self._events():
            if event.stage == "ResponseStarted":
                continue  # a watch: counted when it ends
            writes += event.verb in WRITES
            throttled += event.response_status.code == 429
            if event.user.username == OPERATOR:
                what = "/".join(filter(None, (event.object_ref.resource, event.object_ref.subresource)))
                operator[f"{event.verb} {what}".strip()] += 1
        return Requests(dict(sorted(operator.items())), writes, throttled)

    def _events(self) -> Iterable[_Audited]:
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._offset += len(line)
                yield self._decode(line)


class Stopwatch:
    """CPU time spent between two moments by us, by the operator, and by whoever else uses the machine."""

    def __init__(self, operator: int | None, ours: Iterable[int]) -> None:
        self._operator, self._ours = operator, [os.getpid(), *ours]
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        """CPU seconds: of the operator, of control plane and bench, of everybody else."""
        operator, ours, busy = (now - then for now, then in zip(self._now(), self._before, strict=True))
        others = max(0.0, busy - ours - operator)
        return {"operator": round(operator, 2), "rig": round(ours, 2), "others": round(others, 2)}

    def _now(self) -> tuple[float, float, float]:
        operator = cpu_seconds(self._operator) if self._operator is not None else 0.0
        return operator, sum(map(cpu_seconds, self._ours)), busy_seconds()
