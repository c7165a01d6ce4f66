"""What a kubelet reports about a pod with one container that matters. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rerail_api.base import rfc3339
from rerail_api.contract import TRAINER_CONTAINER
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.local.podspec import LOOPBACK

MESSAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Ended:
    """How the container's first process ended."""

    code: int  # as subprocess tells it: minus the signal where one ended it
    message: str
    started: datetime
    finished: datetime

    @property
    def exit_code(self) -> int:
        """As a container runtime tells it: 128 + signal."""
        return self.code if self.code >= 0 else 128 - self.code


def running(started: datetime) -> Object:
    """Status of a pod whose container runs."""
    state = {"running": {"startedAt": rfc3339(started)}}
    return _status("Running", started, state, ready=True)


def ended(end: Ended) -> Object:
    """Status of a pod whose container has ended for good."""
    terminated: Object = {
        "exitCode": end.exit_code,
        "reason": "Completed" if end.code == 0 else "Error",
        "message": end.message,
        "startedAt": rfc3339(end.started),
        "finishedAt": rfc3339(end.finished),
    }
    if end.code < 0:
        terminated["signal"] = -end.code
    phase = "Succeeded" if end.code == 0 else "Failed"
    return _status(phase, end.started, {"terminated": terminated}, ready=False)


def cannot_start(why: str, now: datetime) -> Object:
    """Status of a pod whose container could not be started at all."""
    terminated = {"exitCode": 128, "reason": "ContainerCannotRun", "message": why, "finishedAt": rfc3339(now)}
    return _status("Failed", now, {"terminated": terminated}, ready=False)


def termination_message(written: str, log_tail: Sequence[str], failed: bool) -> str:
    """What was written; a failed container that wrote nothing: the end of its log (FallbackToLogsOnError)."""
    text = written if written.strip() or not failed else "\n".join(log_tail)
    return text.encode("utf-8", "replace")[-MESSAGE_BYTES:].decode("utf-8", "replace")


def _status(phase: str, started: datetime, state: Object, ready: bool) -> Object:
    word = "True" if ready else "False"
    now = rfc3339(started)
    return {
        "phase": phase,
        "podIP": LOOPBACK,
        "podIPs": [{"ip": LOOPBACK}],
        "hostIP": LOOPBACK,
        "startTime": now,
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            {"type": "Initialized", "status": "True", "lastTransitionTime": now},
            {"type": "ContainersReady", "status": word, "lastTransitionTime": now},
            {"type": "Ready", "status": word, "lastTransitionTime": now},
        ],
        "containerStatuses": [
            {
                "name": TRAINER_CONTAINER,
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "image": "local",
                "imageID": "local",
                "state": state,
            }
        ],
    }
