"""What the agent is told by its environment and command line, parsed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerail_api.contract import (
    CANNOT_STOP_SECONDS,
    HEARTBEAT_SECONDS,
    PROBE_SECONDS,
    SILENT_SECONDS,
    UNLED_COMPLETION_SECONDS,
    UNLED_FAILURE_SECONDS,
    Env,
)

DEFAULT_GRACE_SECONDS = 30.0
KUBELET_TERMINATION_LOG = "/dev/termination-log"
USAGE = "usage: python3 agent.pyz -- COMMAND [ARGUMENT...]"


class BadSettings(Exception):
    """The environment or the command line cannot be used; the message says what to set."""


@dataclass(frozen=True)
class Address:
    """Where a TCP service listens; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Timing:
    """Every span of time the agent lives by, in seconds."""

    heartbeat: float = HEARTBEAT_SECONDS
    silent: float = SILENT_SECONDS
    connect: float = 5.0
    cannot_stop: float = CANNOT_STOP_SECONDS
    unled_completion: float = UNLED_COMPLETION_SECONDS
    unled_failure: float = UNLED_FAILURE_SECONDS
    refused: float = 10.0
    complaint: float = 60.0
    progress: float = 0.5
    probe: float = PROBE_SECONDS


@dataclass(frozen=True)
class Settings:
    """The agent's own part of the contract's environment."""

    command: tuple[str, ...]
    coordinator: Address
    tls: bool
    server_name: str
    ca_file: str
    token_file: str
    job: str
    job_uid: str
    pod: str
    pod_uid: str
    pod_ip: str
    per_node: bool
    nproc: int
    warm_start: bool
    grace_seconds: float
    termination_log: str


def parse_address(text: str) -> Address:
    """`host:port` or `[ipv6]:port`; raises ValueError on anything else."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port")
    return Address(host, int(port))


def read_settings(argv: Sequence[str], env: Mapping[str, str]) -> Settings:
    """Settings from what follows the program name and the environment; raises BadSettings."""
    if len(argv) < 2 or argv[0] != "--":
        raise BadSettings(f"no command to run; {USAGE}")
    tls = _choice(env, Env.COORDINATOR_TLS, ("1", "0")) == "1"
    coordinator = _address(env)
    return Settings(
        command=tuple(argv[1:]),
        coordinator=coordinator,
        tls=tls,
        server_name=env.get(Env.COORDINATOR_NAME, "") or coordinator.host,
        ca_file=_required(env, Env.CA_FILE) if tls else "",
        token_file=_required(env, Env.TOKEN_FILE),
        job=_required(env, Env.JOB),
        job_uid=_required(env, Env.JOB_UID),
        pod=_required(env, Env.POD),
        pod_uid=_required(env, Env.POD_UID),
        pod_ip=env.get(Env.POD_IP, ""),
        per_node=_choice(env, Env.LAUNCHER, ("PerRank", "PerNode")) == "PerNode",
        nproc=_count(env, Env.NPROC),
        warm_start=_choice(env, Env.WARM_START, ("Auto", "Never")) == "Auto",
        grace_seconds=_seconds(env, Env.GRACE_SECONDS, DEFAULT_GRACE_SECONDS),
        termination_log=env.get(Env.TERMINATION_LOG, KUBELET_TERMINATION_LOG),
    )


def _required(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise BadSettings(f"{name} is not set; the agent is started by Rerail, which sets it")
    return value


def _address(env: Mapping[str, str]) -> Address:
    try:
        return parse_address(_required(env, Env.COORDINATOR))
    except ValueError as error:
        raise BadSettings(f"{Env.COORDINATOR}: {error}") from error


def _choice(env: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`; the first when unset, so that TLS is off only where somebody says so."""
    value = env.get(name, "") or choices[0]
    if value not in choices:
        raise BadSettings(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    return value


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise BadSettings(f"{name} is {text!r}; it must be a number of seconds, 0 or more")
    return value


def _count(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise BadSettings(f"{name} is {text!r}; it must be a whole number, 1 or more")
    return int(text)
