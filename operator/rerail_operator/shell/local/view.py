"""What both screens show: the job's last state, the newest progress, the last log lines. Renders nothing."""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rerail_api.contract import ProgressPhase
from rerail_api.v1alpha1 import TrainingJob
from rerail_operator.core.world import Agent, Progress

LOG_TAIL = 8
BEFORE_STEPS = (ProgressPhase.INIT.value, ProgressPhase.COMPILE.value)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(slots=True)
class View:
    """The run as a person may see it now."""

    job: TrainingJob
    progress: Progress = field(default_factory=Progress)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL))
    log_lines: dict[int, tuple[str, ...]] = field(default_factory=dict)  # by incident, also of older ones
    _pace: "Pace" = field(default_factory=lambda: Pace())

    def job_changed(self, job: TrainingJob) -> None:
        """Take over a newer state of the job."""
        self.job = job
        for incident in job.status.incidents:
            if incident.log_lines:
                self.log_lines[incident.number] = incident.log_lines

    def agents_seen(self, agents: Mapping[str, Agent], now: float) -> None:
        """Take over the furthest progress of this round that an agent reports; `now` is monotonic."""
        current = [a.progress for a in agents.values() if a.progress and a.round == self.job.status.round]
        stepping = [p for p in current if p.step is not None and p.phase not in BEFORE_STEPS]
        if stepping:
            self.progress = max(stepping, key=lambda progress: progress.step or 0)
            self._pace.step(self.job.status.round, self.progress.step or 0, now)

    @property
    def step(self) -> int | None:
        """The last finished step that anybody told of."""
        return self.progress.step if self.progress.step is not None else self.job.status.progress.step

    @property
    def total_steps(self) -> int | None:
        return self.progress.total_steps or self.job.status.progress.total_steps

    @property
    def loss(self) -> float | None:
        return self.progress.loss if self.progress.loss is not None else self.job.status.progress.loss

    @property
    def tokens_per_second(self) -> float | None:
        told = self.progress.tokens_per_second
        return told if told is not None else self.job.status.progress.tokens_per_second

    def seconds_left(self) -> float | None:
        """Until the last step, at the pace of this round; None before there is one."""
        if self.step is None or self.total_steps is None or not self._pace.per_second:
            return None
        return max(0, self.total_steps - self.step) / self._pace.per_second


@dataclass(slots=True)
class Pace:
    """Steps per second since the round's first step."""

    round: int = -1
    first_step: int = 0
    first_at: float = 0.0
    per_second: float = 0.0

    def step(self, round_: int, step: int, now: float) -> None:
        """Count a step that is known to be finished at `now`."""
        if round_ != self.round:
            self.round, self.first_step, self.first_at, self.per_second = round_, step, now, 0.0
        elif step > self.first_step and now > self.first_at:
            self.per_second = (step - self.first_step) / (now - self.first_at)


def plain(line: str) -> str:
    """A log line without what would move a terminal's cursor or colours."""
    return "".join(c if c.isprintable() else " " for c in ESCAPE.sub("", line))
