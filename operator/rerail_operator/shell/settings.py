"""The operator's settings: environment variables, read once, all problems told at once."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

PREFIX = "RERAIL_"
Value = TypeVar("Value")

DEFAULT_ACCELERATORS = (
    "nvidia.com/gpu",
    "amd.com/gpu",
    "gpu.intel.com/xe",
    "gpu.intel.com/i915",
    "habana.ai/gaudi",
    "google.com/tpu",
    "aws.amazon.com/neuron",
)
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RESOURCE = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_CONDITION = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")
READY = "Ready"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class BadSettings(Exception):
    """One line per variable that cannot be used: its name, what is wrong, and an example."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"the operator's environment cannot be used:{lines}")


@dataclass(frozen=True, slots=True)
class Variable(Generic[Value]):
    """How one setting is read. `read` raises ValueError with what is wrong, the name left out."""

    read: Callable[[str], Value]
    example: str


@dataclass(frozen=True, slots=True)
class HostPort:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _text(value: str) -> str:
    return value


def _dns_name(value: str) -> str:
    if not _DNS_NAME.fullmatch(value) or len(value) > 253:
        raise ValueError("is not a name that Kubernetes accepts (lower case letters, digits, '-' and '.')")
    return value


def _between(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(value)

    return read


_port = _between(1, 65535)


def _host_port(value: str) -> HostPort:
    host, separator, port = value.rpartition(":")
    if not separator or not host:
        raise ValueError("is not host:port")
    try:
        return HostPort(host.strip("[]"), _port(port))
    except ValueError as error:
        raise ValueError(f"has a port that {error}") from error


def _accelerators(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    bad = [name for name in names if not _RESOURCE.fullmatch(name)]
    if bad:
        raise ValueError(f"holds {', '.join(map(repr, bad))}, which is no vendor/resource name")
    return names


def _conditions(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if bad := [name for name in names if not _CONDITION.fullmatch(name)]:
        raise ValueError(f"holds {', '.join(map(repr, bad))}, which is no type of a node condition")
    if READY in names:
        raise ValueError(
            f"holds {READY!r}, which is True on every good node; name types that are True on bad ones"
        )
    return names


def _one_of(choices: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(value: str) -> StrEnum:
        try:
            return choices(value.lower())
        except ValueError:
            raise ValueError(f"is none of {', '.join(choices)}") from None

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is read from RERAIL_ and its name in capitals."""

    namespace: str
    coordinator_service: HostPort
    coordinator_port: int = 7400
    pod_name: str = "rerail"
    pod_ip: str = "127.0.0.1"
    accelerators: tuple[str, ...] = DEFAULT_ACCELERATORS
    bad_node_conditions: tuple[str, ...] = ()
    """Types of node conditions that speak against the node while they are True."""
    probe_port: int = 8080
    metrics_port: int = 9090
    lease_name: str = "rerail"
    workers: int = 4
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    unknown: tuple[str, ...] = ()
    """Variables that look like ours and are not: one sentence each, to be logged."""

    @property
    def address(self) -> HostPort:
        """Where this process' coordinator is reached by agents that a standby sends here."""
        return HostPort(self.pod_ip, self.coordinator_port)

    @property
    def authority_secret(self) -> str:
        return f"{self.lease_name}-authority"


_VARIABLES: dict[str, Variable[Any]] = {
    "namespace": Variable(_dns_name, "rerail-system"),
    "coordinator_service": Variable(_host_port, "rerail-coordinator.rerail-system.svc:7400"),
    "coordinator_port": Variable(_port, "7400"),
    "pod_name": Variable(_dns_name, "rerail-0"),
    "pod_ip": Variable(_text, "10.1.2.3"),
    "accelerators": Variable(_accelerators, "nvidia.com/gpu,amd.com/gpu"),
    "bad_node_conditions": Variable(_conditions, "GpuUnhealthy,KernelDeadlock"),
    "probe_port": Variable(_port, "8080"),
    "metrics_port": Variable(_port, "9090"),
    "lease_name": Variable(_dns_name, "rerail"),
    "workers": Variable(_between(1, 64), "4"),
    "log_level": Variable(_one_of(LogLevel), "info"),
    "log_format": Variable(_one_of(LogFormat), "json"),
}
_REQUIRED = ("namespace", "coordinator_service")
_PORTS = ("coordinator_port", "probe_port", "metrics_port")


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises BadSettings with every problem. An empty variable counts as unset."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting, variable in _VARIABLES.items():
        name = _name(setting)
        hint = f"example: {name}={variable.example}"
        given = environment.get(name, "").strip()
        try:
            if given:
                values[setting] = variable.read(given)
            elif setting in _REQUIRED:
                problems.append(f"{name} is not set; {hint}")
        except ValueError as error:
            problems.append(f"{name}={given!r} {error}; {hint}")
    if problems:
        raise BadSettings(problems)
    settings = Settings(**values, unknown=_unknown(environment))
    ports = {_name(name): getattr(settings, name) for name in _PORTS}
    if len(set(ports.values())) < len(ports):
        told = ", ".join(f"{name}={port}" for name, port in ports.items())
        raise BadSettings([f"{told}: these ports have to differ"])
    return settings


def _name(setting: str) -> str:
    return PREFIX + setting.upper()


def _unknown(environment: Mapping[str, str]) -> tuple[str, ...]:
    known = [_name(setting) for setting in _VARIABLES]
    # A Service named rerail makes Kubernetes itself set RERAIL_SERVICE_HOST, RERAIL_PORT_80_TCP and the like.
    links = re.compile(rf"{PREFIX}(.*_)?(SERVICE_(HOST|PORT.*)|PORT(_[0-9].*)?)")
    told = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or links.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, 1)
        told.append(f"{name} is not a setting and is ignored" + (f"; is {near[0]} meant?" if near else ""))
    return tuple(told)
