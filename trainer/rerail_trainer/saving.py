"""When a save is due, and what is told of it: the loop's side of checkpoints."""

from typing import TYPE_CHECKING

from rerail_api.contract import ProgressPhase

from .checkpoint.save import Outcome, Position
from .checkpoint.series import Series
from .checkpoint.state import TrainingState
from .control import Wishes
from .timer import SaveTimer

if TYPE_CHECKING:
    from .loop import Run


class Saves:
    """The saves of a run. Every method is called at a step boundary, by all ranks together.

    With checkpoint.mode=process training goes on while a save is written; with sync it waits, as at the end.
    """

    def __init__(self, run: "Run") -> None:
        checkpoint = run.config.checkpoint
        self._run, self._series, self._reports = run, run.series, run.reports
        self._every, self._waits = checkpoint.every_steps, checkpoint.mode == "sync"
        self._seconds, self._advice = checkpoint.every_seconds, run.advice
        self._timer = SaveTimer()
        self._began = -1
        """Step of the last save."""

    def wishes(self) -> Wishes:
        """What this rank has to say about stopping and saving."""
        if self._series is None:
            return Wishes(stop=self._run.stop.requested)
        advised = self._advice.checkpoint_seconds() if self._run.meeting.control.first else 0
        seconds = advised or (self._seconds if self._run.meeting.control.first else 0)
        due = self._timer.due(seconds) and not self._series.saving
        return Wishes(self._run.stop.requested, due, *self._series.own_part(), by_clock=advised > 0)

    def advance(self, agreed: Wishes) -> None:
        """Takes the save under way as far as all ranks are."""
        if self._series is not None:
            self._tell(self._series, self._series.advance(agreed.saving, agreed.save_failed))

    def due(self, step: int, agreed: Wishes) -> bool:
        """Whether to begin a save of `step`; one that comes while another is under way is left out.

        All ranks come to the same answer: whether the clock or the step decides is agreed on, too.
        """
        by_step = not agreed.by_clock and step % self._every == 0
        # What is agreed on was wished one step ago: a wish from before the last save has been granted.
        by_wish = agreed.save and step > self._began + 1
        if self._series is None or not (by_wish or by_step):
            return False
        if self._series.saving:
            self._reports.save_skipped(step)
            return False
        return True

    def begin(self, step: int) -> None:
        """Saves `step`: training goes on at once, or once it is committed."""
        if self._series is None:
            return
        self._began = step
        config = self._run.config
        position = Position(step, step * config.batch.tokens_per_step, step * config.sequences_per_step)
        self._series.begin(position, TrainingState(self._run.layout.model, self._run.optimizer))
        if self._waits:
            self._wait(self._series)
        self._timer.restart()

    def last(self, step: int) -> bool:
        """Brings the save under way to its end and saves `step`; whether that is committed then."""
        if self._series is None:
            return False
        self.settle()
        self._waits = True
        if self._series.committed_step != step:
            self.begin(step)
        with self._run.watchdog.during(ProgressPhase.SAVE):
            self._series.finish_pruning()
        return self._series.committed_step == step

    def settle(self) -> None:
        """Brings the save under way to its end, where there is one: its step is good whatever came after."""
        if self._series is not None and self._series.saving:
            self._wait(self._series)

    def _wait(self, series: Series) -> None:
        self._reports.phase(ProgressPhase.SAVE)
        with self._run.watchdog.during(ProgressPhase.SAVE):
            self._tell(series, series.wait())

    def _tell(self, series: Series, outcome: Outcome | None) -> None:
        self._reports.stood_still(series.stall_seconds)
        if outcome is None:
            return
        if outcome.committed:
            self._reports.committed(outcome)
        else:
            self._reports.save_failed(outcome)
