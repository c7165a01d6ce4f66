"""A training of one rank in this process: the trainer's own parts and its own loop, watched from outside."""

import gc
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rerail_api.contract import ExitCode
from rerail_trainer.advice import Advice
from rerail_trainer.compiling import compile_blocks, compiling
from rerail_trainer.config import Config, DataConfig
from rerail_trainer.data.feed import Feed, share_of
from rerail_trainer.data.shards import header
from rerail_trainer.data.source import open_source
from rerail_trainer.environment import RankIdentity
from rerail_trainer.loop import Run, rehearse, train
from rerail_trainer.meeting import meet
from rerail_trainer.model import fill
from rerail_trainer.optim import optimizer_for
from rerail_trainer.parallel.layouts import lay_out
from rerail_trainer.report.progress import ProgressLog
from rerail_trainer.report.reports import Launch, Reports, StepReport
from rerail_trainer.stop import StopRequest
from rerail_trainer.watchdog import Watchdog

SYNTHETIC_TOKENS = 20_000_000


@dataclass(frozen=True)
class Tick:
    """A finished step: seconds on the wall's clock and of this process on all cores."""

    wall: float
    cpu: float


class TickedReports(Reports):
    """The trainer's reports, progress lines and all; notes besides when each step was told."""

    def __init__(self, config: Config, progress: ProgressLog) -> None:
        super().__init__(config, True, progress)
        self.ticks: list[Tick] = []

    def say(self, text: str) -> None:
        """Lines for people would stand among those of the bench."""

    def step(self, report: StepReport) -> None:
        super().step(report)
        self.ticks.append(Tick(time.perf_counter(), time.process_time()))


class Stopped(Exception):
    """The training ended by itself: somebody asked it to."""


class Training:
    """Ready for its first step; `more` makes steps. `config` and `run` may be looked at and wrapped."""

    def __init__(self, config: Config) -> None:
        self.config = config
        meeting = meet(RankIdentity(), config)
        layout = lay_out(config, meeting)
        layout.model.recompute(config.parallel.recompute)
        if config.parallel.compile:
            compile_blocks(layout.model, meeting.device, own_collectives=False)
        fill(layout.model, config.run.seed)
        feed = Feed(config, open_source(config), share_of(config, 0, 1), meeting.device)
        progress = Path(tempfile.mkdtemp()) / "progress"
        self.reports = TickedReports(config, ProgressLog(str(progress)))
        optimizer = optimizer_for(layout, config.optim)
        stop, watchdog = StopRequest(), Watchdog(config.watchdog)
        advice = Advice({})
        self.run = Run(
            config, meeting, layout, optimizer, feed, None, self.reports, stop, watchdog, None, advice
        )
        self.step = 0
        began = time.perf_counter()
        with compiling() if config.parallel.compile else nullcontext():
            rehearse(self.run)
        self.rehearsed_seconds = time.perf_counter() - began
        self.reports.started(0, None, Launch())

    def more(self, steps: int) -> list[Tick]:
        """Makes `steps` steps by the trainer's loop; when each was told."""
        self.reports.ticks = []
        end = self.step + steps
        config = replace(self.config, train=replace(self.config.train, steps=end))
        self.run.config = config
        try:
            if train(self.run, self.step) != ExitCode.DONE:
                raise Stopped
        finally:
            # The loop turns collections off; whoever comes next has a right to its own ways.
            gc.unfreeze()
            gc.enable()
        self.step = end
        return self.reports.ticks


def synthetic(config: Config, folder: Path) -> Config:
    """Trains on uniformly random tokens of the model's vocabulary: for throughput only."""
    dtype = np.dtype("<u4" if config.model.vocab > 65_536 else "<u2")
    tokens = np.random.default_rng(1).integers(0, config.model.vocab, SYNTHETIC_TOKENS)
    path = folder / "random.bin"
    path.write_bytes(header(SYNTHETIC_TOKENS, dtype) + tokens.astype(dtype).tobytes())
    return replace(config, data=DataConfig(source="shards", path=str(path)))
