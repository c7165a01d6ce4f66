"""What rank 0 tells the world about the run: lines for people, progress lines, metrics, and the sinks."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rerail_api.contract import ProgressPhase
from rerail_trainer.config import Config, config_hash
from rerail_trainer.planning.parts import flops_per_token
from rerail_trainer.report.jsonl import highest_step
from rerail_trainer.report.metrics import Metrics, labelled
from rerail_trainer.report.pace import Pace
from rerail_trainer.report.process import seconds_since_start
from rerail_trainer.report.progress import ProgressLog
from rerail_trainer.report.sinks import open_sinks

if TYPE_CHECKING:
    from rerail_trainer.checkpoint.save import Outcome


@dataclass(frozen=True)
class StepReport:
    """One finished step; loss in nats per token, tokens since step 0.

    expert_loads: for each mixture of experts, first block first, its fullest expert's tokens over the mean.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    expert_loads: tuple[float, ...] = ()


_TOLD = ("step", "loss", "grad_norm", "lr", "tokens")
"""What sinks get of a StepReport as it is."""


@dataclass(frozen=True)
class Launch:
    """The circumstances of a start. Peaks are dense bf16 FLOP/s of one device, 0 where they are not known."""

    world_size: int = 1
    layout: str = "1 rank"
    device: str = "cpu"
    torch: str = ""
    stated_peak: float = 0.0
    measured_peak: float = 0.0


class Reports:
    """Silent on all ranks but 0."""

    def __init__(
        self, config: Config, first: bool, progress: ProgressLog, round_number: int | None = None
    ) -> None:
        """round_number: of the job's processes, from 1; None for a run without an operator."""
        self._config, self._first, self._progress = config, first, progress
        self.metrics = Metrics()
        self.metrics.set("restarts_total", max((round_number or 1) - 1, 0))
        self._launch = Launch()
        self._flops_per_token = flops_per_token(config.model)
        self._pace = Pace()
        self._resumed: dict[str, int | None] | None = None
        self._checkpoint_step = 0
        self._last: dict[str, Any] = {"total_steps": config.train.steps}
        self._followed: dict[str, Callable[[], float]] = {}
        self._steps_here = 0
        self._highest = (highest_step(config.metrics.jsonl) or 0) if first and config.metrics.jsonl else 0
        self._sinks = open_sinks(config) if first else []

    def say(self, text: str) -> None:
        """One line for people, on standard output."""
        if self._first:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def phase(self, phase: ProgressPhase) -> None:
        """Announces what comes next, with the last step once one is known."""
        if self._first:
            self._progress.write(phase, **self._last)

    def passed(self, phase: str) -> None:
        """A phase of the start has ended: imported, met, compiled, loaded."""
        seconds = seconds_since_start()
        self.metrics.set("phase_seconds", seconds, labelled(phase=phase))
        self._event("phase", phase=phase, seconds=round(seconds, 3))

    def follow(self, name: str, read: Callable[[], float]) -> None:
        """Sets the metric `name` at every step to what `read` gives then."""
        self._followed[name] = read

    def started(self, step: int, resumed_from: int | None, launch: Launch) -> None:
        """Training begins after `step`; the first train line will say what it resumed from."""
        self._launch = launch
        self._resumed = {"resumed_from": resumed_from}
        self._checkpoint_step = step
        self._last.update(step=step, checkpoint_step=step)
        self._pace.begin(step * self._config.batch.tokens_per_step)
        labels = labelled(
            torch=launch.torch, layout=launch.layout, config_hash=config_hash(self._config)[:12]
        )
        self.metrics.set("build_info", 1, labels)
        for name in ("productive_seconds_total", "lost_steps_total", "nonfinite_total"):
            self.metrics.set(name, 0)
        if self._config.model.experts:
            self.metrics.set("moe_tokens_dropped_total", 0)
        config = self._config
        self._event(
            "start",
            step=step,
            total_steps=config.train.steps,
            tokens_per_step=config.batch.tokens_per_step,
            flops_per_token=self._flops_per_token,
            config_hash=config_hash(config),
            **asdict(launch),
        )
        if resumed_from is not None:
            self.metrics.set("resume_step", step)
            self._event("resume", step=step, lost_steps=max(self._highest - step, 0))

    def stood_still(self, seconds: float) -> None:
        """So long training has waited for saves since the process began; the next progress line says it."""
        self._last["stall_seconds"] = round(seconds, 4)

    def damaged(self, set_aside: tuple[str, ...]) -> None:
        """Checkpoints that a load found damaged, and set aside under these names."""
        self.metrics.set("checkpoint_damaged_total", len(set_aside))
        if set_aside:
            self._event("damaged", step=self._last.get("step"), set_aside=list(set_aside))

    def step(self, report: StepReport) -> None:
        """Tells of one finished step."""
        if not self._first:
            return
        seconds = self._pace.tick(report.tokens)
        rate, mfu = self._pace.tokens_per_second, self._utilisation(self._launch.stated_peak)
        self._last.update(
            step=report.step, loss=report.loss, tokens=report.tokens, tokens_per_second=round(rate, 1)
        )
        if mfu is not None:
            self._last["mfu"] = round(mfu, 4)
        self._progress.write(ProgressPhase.TRAIN, **self._last, **(self._resumed or {}))
        self._resumed = None
        self._measure(report, seconds, rate)
        told: dict[str, Any] = {name: getattr(report, name) for name in _TOLD}
        told |= {"tokens_per_second": round(rate, 1), "step_seconds": round(seconds, 6)}
        told |= {} if mfu is None else {"mfu": round(mfu, 4)}
        told["time"] = time.time()
        for sink in self._sinks:
            sink.step(told)
        if report.step % self._config.metrics.every == 0 or report.step == self._config.train.steps:
            self._say_step(report, rate, mfu)
        self._steps_here += 1
        if self._steps_here == 1:
            self.passed("first_step")

    def nonfinite(self) -> None:
        """A step had a loss or gradient that was not finite, and was not taken."""
        self.metrics.add("nonfinite_total", 1)

    def committed(self, outcome: "Outcome") -> None:
        """A checkpoint is durable."""
        step = outcome.step
        assert step is not None  # noqa: S101
        self._checkpoint_step = step
        self._last.update(checkpoint_step=step)
        if 2 * outcome.stall_seconds > outcome.seconds:
            self._pace.resume()  # training waited for it
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
        self.metrics.add("checkpoint_failures_total", 1, labelled(reason=outcome.reason))
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
        self._pace.resume()
        told = {"eval_loss": loss, "eval_bits_per_byte": bits_per_byte}
        for name, value in told.items():
            if value is not None:
                self.metrics.set(name, value)
        self._event("eval", step=step, **told)
        known = "" if bits_per_byte is None else f"  {bits_per_byte:.4f} bits per byte"
        self.say(f"step {step}/{self._config.train.steps}  held-out loss {loss:.4f}{known}")
        self.phase(ProgressPhase.TRAIN)

    def ended(self, code: int | None, reason: str) -> None:
        """The last words: the exit code, None where nobody foresaw the end. Sinks are closed."""
        self._event("stop", step=self._last.get("step"), code=code, reason=reason)
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _measure(self, report: StepReport, seconds: float, rate: float) -> None:
        """Brings the metrics up to a step."""
        metrics = self.metrics
        for name in ("step", "loss", "grad_norm", "lr"):
            metrics.set(name, getattr(report, name))
        metrics.set("tokens_total", report.tokens)
        metrics.set("tokens_per_second", rate)
        metrics.observe("step_seconds", seconds)
        if report.step > self._highest:
            metrics.add("productive_seconds_total", seconds)
        else:
            metrics.add("lost_steps_total", 1)
        peaks = {
            "mfu_ratio": self._launch.stated_peak,
            "matmul_peak_ratio": self._launch.measured_peak,
        }
        for name, peak in peaks.items():
            if (share := self._utilisation(peak)) is not None:
                metrics.set(name, share)
        for name, read in self._followed.items():
            metrics.set(name, read())
        for layer, load in enumerate(report.expert_loads, self._config.model.dense_layers):
            metrics.set("moe_load_max_over_mean", load, labelled(layer=str(layer)))

    def _utilisation(self, peak: float) -> float | None:
        """Share of a peak, with FLOP per token by the project's convention; None without one."""
        if not peak:
            return None
        flops = self._flops_per_token * self._pace.tokens_per_second
        return flops / (peak * self._launch.world_size)

    def _say_step(self, report: StepReport, rate: float, mfu: float | None) -> None:
        used = "" if mfu is None else f"  mfu {100 * mfu:.1f} %"
        self.say(
            f"step {report.step}/{self._config.train.steps}  loss {report.loss:.4f}"
            f"  norm {report.grad_norm:.2f}"
            f"  lr {report.lr:.2e}  {rate:,.0f} tok/s{used}  saved {self._checkpoint_step}"
        )

    def _event(self, name: str, **values: Any) -> None:
        for sink in self._sinks:
            sink.event(name, values)
