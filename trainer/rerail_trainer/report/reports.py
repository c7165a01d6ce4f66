"""What rank 0 tells the world about the run: lines for people, progress lines, JSONL and metrics."""

import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rerail_api.contract import ProgressPhase
from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig
from rerail_trainer.report.metrics import Metrics
from rerail_trainer.report.progress import ProgressLog

if TYPE_CHECKING:
    from rerail_trainer.checkpoint.save import Outcome

_RATE_STEPS = 20
"""Tokens per second are taken over so many steps."""


@dataclass(frozen=True)
class StepReport:
    """One finished step; loss in nats per token, tokens since step 0."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int


class Reports:
    """Silent on all ranks but 0."""

    def __init__(self, config: Config, first: bool, progress: ProgressLog) -> None:
        self._config, self._first, self._progress = config, first, progress
        self.metrics = Metrics()
        self._resumed: dict[str, int | None] | None = None
        self._checkpoint_step = 0
        self._ticks: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS + 1)
        self._last: dict[str, Any] = {"total_steps": config.train.steps}
        self._jsonl = _open_jsonl(config.metrics.jsonl) if first and config.metrics.jsonl else None

    def say(self, text: str) -> None:
        """One line for people, on standard output."""
        if self._first:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def phase(self, phase: ProgressPhase) -> None:
        """Announces what comes next, with the last step once one is known."""
        if self._first:
            self._progress.write(phase, **self._last)

    def started(self, step: int, resumed_from: int | None) -> None:
        """Training begins after `step`; the first train line will say what it resumed from."""
        self._resumed = {"resumed_from": resumed_from}
        self._checkpoint_step = step
        self._last.update(step=step, checkpoint_step=step)
        self._ticks.append((time.monotonic(), step * self._config.batch.tokens_per_step))
        if resumed_from is not None:
            self.metrics.set("resume_step", step)

    def step(self, report: StepReport) -> None:
        """Tells of one finished step."""
        if not self._first:
            return
        now = time.monotonic()
        before = self._ticks[-1][0] if self._ticks else now
        self._ticks.append((now, report.tokens))
        rate = self._rate()
        self._last.update(
            step=report.step, loss=report.loss, tokens=report.tokens, tokens_per_second=round(rate, 1)
        )
        self._progress.write(ProgressPhase.TRAIN, **self._last, **(self._resumed or {}))
        self._resumed = None
        for name, value in (("step", report.step), ("loss", report.loss), ("grad_norm", report.grad_norm)):
            self.metrics.set(name, value)
        self.metrics.set("lr", report.lr)
        self.metrics.set("tokens_total", report.tokens)
        self.metrics.set("tokens_per_second", rate)
        self.metrics.add("step_seconds_sum", now - before)
        self.metrics.add("step_seconds_count", 1)
        if self._jsonl:
            self._jsonl.write(json.dumps({**asdict(report), "time": time.time()}) + "\n")
        if report.step % self._config.metrics.every == 0 or report.step == self._config.train.steps:
            self.say(
                f"step {report.step}/{self._config.train.steps}  loss {report.loss:.4f}"
                f"  norm {report.grad_norm:.2f}"
                f"  lr {report.lr:.2e}  {rate:,.0f} tok/s  saved {self._checkpoint_step}"
            )

    def committed(self, outcome: "Outcome") -> None:
        """A checkpoint is durable."""
        step = outcome.step
        assert step is not None  # noqa: S101
        self._checkpoint_step = step
        self._last.update(checkpoint_step=step)
        if 2 * outcome.stall_seconds > outcome.seconds:
            self._restart_clock()  # training waited for it
        self.metrics.set("checkpoint_last_committed_step", step)
        self.metrics.set("checkpoint_last_commit_timestamp_seconds", outcome.time)
        self.metrics.set("checkpoint_save_seconds", outcome.seconds)
        self.metrics.set("checkpoint_bytes", outcome.bytes)
        self.metrics.set("checkpoint_stall_seconds", outcome.stall_seconds)
        self.metrics.add("checkpoint_stall_seconds_total", outcome.stall_seconds)
        self._event("commit", **asdict(outcome))
        self.phase(ProgressPhase.TRAIN)

    def save_failed(self, outcome: "Outcome") -> None:
        """A save failed, or a writer died between two saves; training goes on."""
        self.metrics.add("checkpoint_failures_total", 1, f'reason="{outcome.reason}"')
        self._event("save-failed", **asdict(outcome))
        what = "a writer is lost" if outcome.step is None else f"step {outcome.step} could not be saved"
        self.say(f"{what}: {outcome.failure}; training goes on, saved is {self._checkpoint_step}")
        self.phase(ProgressPhase.TRAIN)

    def save_skipped(self, step: int) -> None:
        """A save of `step` was due while another was under way."""
        self.metrics.add("checkpoint_skipped_total", 1)
        self._event("save-skipped", step=step)

    def evaluated(self, step: int, loss: float, bits_per_byte: float | None) -> None:
        """Held-out loss after `step`, in nats per token, and in bits per byte where bytes are known."""
        self._restart_clock()
        told = {"eval_loss": loss, "eval_bits_per_byte": bits_per_byte}
        for name, value in told.items():
            if value is not None:
                self.metrics.set(name, value)
        if self._jsonl:
            self._jsonl.write(json.dumps({"event": "eval", "step": step, **told, "time": time.time()}) + "\n")
        known = "" if bits_per_byte is None else f"  {bits_per_byte:.4f} bits per byte"
        self.say(f"step {step}/{self._config.train.steps}  held-out loss {loss:.4f}{known}")
        self.phase(ProgressPhase.TRAIN)

    def _event(self, name: str, **values: Any) -> None:
        if self._jsonl:
            self._jsonl.write(json.dumps({"event": name, **values, "time": time.time()}) + "\n")

    def _restart_clock(self) -> None:
        """Time spent saving is no time spent stepping."""
        if self._ticks:
            tokens = self._ticks[-1][1]
            self._ticks.clear()
            self._ticks.append((time.monotonic(), tokens))

    def _rate(self) -> float:
        (begin, first), (end, last) = self._ticks[0], self._ticks[-1]
        return (last - first) / (end - begin) if end > begin else 0.0


def _open_jsonl(path: str) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise BadConfig(f"metrics.jsonl={path} cannot be written: {error.strerror}") from error
