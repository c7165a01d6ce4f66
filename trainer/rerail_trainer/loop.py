"""The step loop, readable from top to bottom."""

import gc
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rerail_api.contract import ExitCode, ProgressPhase

from .advice import Advice
from .busy import Busy
from .checkpoint.series import Series
from .config import Config
from .control import Agreement
from .data.feed import Feed, MicroBatch
from .evaluate.during import Evaluation
from .failures import TrainerExit
from .meeting import Meeting
from .model import IGNORED, balance, forget_load
from .optim import Optimizer, learning_rate
from .parallel.layouts import Layout
from .report.reports import Reports, StepReport
from .saving import Saves
from .stop import StopRequest
from .watchdog import Watchdog

_COLLECT_EVERY = 1000


@dataclass
class Run:
    """Everything the loop works with, built and ready."""

    config: Config
    meeting: Meeting
    layout: Layout
    optimizer: Optimizer
    feed: Feed
    series: Series | None
    reports: Reports
    stop: StopRequest
    watchdog: Watchdog
    evaluation: Evaluation | None
    advice: Advice
    busy: Busy | None = None


def train(run: Run, start: int) -> ExitCode:
    """Trains from `start` finished steps to the end, or until somebody wants it to stop."""
    step, total = start, run.config.train.steps
    agreement, saves = Agreement(run.meeting.control), Saves(run)
    readings = Readings(run, saves)
    while step < total:
        readings.add(step + 1, update(run, step))
        step += 1
        run.watchdog.step(step)
        agreed = agreement.exchange(saves.wishes())
        saves.advance(agreed)
        if agreed.stop and step < total:
            agreement.finish()
            readings.drain()
            return stopped(run, step, saves.last(step))
        if step < total and saves.due(step, agreed):
            readings.drain()
            saves.begin(step)
        if run.evaluation is not None and run.evaluation.due(step):
            readings.drain()
            evaluate(run, run.evaluation, step)
        if step == start + 1:
            settle()
        elif (step - start) % _COLLECT_EVERY == 0:
            gc.collect()
    agreement.finish()
    readings.drain()
    saves.last(step)
    return finish(run, step)


def update(run: Run, step: int) -> Tensor:
    """One optimizer step; float64 on the device: mean loss, gradient norm, 1 if both are finite, and for each
    mixture of experts the load of the fullest over the mean.

    With a loss or norm that is not finite nothing changes, on any rank: the check stays on the device.
    """
    if run.busy is not None:
        run.busy.begin()
    micro_batches = run.feed.take(step)
    tokens = counted_targets(run, micro_batches)
    losses = backward(run, micro_batches, tokens)
    if run.meeting.world_size > 1:
        dist.all_reduce(losses)
    norm = run.layout.clip(run.config.optim.clip)
    loss = losses / tokens
    finite = torch.isfinite(loss + norm)
    rate = learning_rate(step, run.config.optim, run.config.horizon_steps)
    if run.series is not None:
        run.series.staged()
    unless = (~finite).float()
    run.optimizer.step(step + 1, rate, unless)
    run.layout.zero_gradients()
    measured = torch.stack((loss.double(), norm.double(), finite.double()))
    if run.config.model.experts == 0:
        return measured
    loads = balance(run.layout.model, run.layout.sum_over_data, unless)
    return measured if loads is None else torch.cat((measured, loads.double()))


def counted_targets(run: Run, micro_batches: list[MicroBatch]) -> Tensor | int:
    """Targets of this step that the loss counts, over all ranks: fixed, or int64 scalar on the device."""
    if run.feed.every_target_counts:
        return run.config.batch.tokens_per_step
    count = torch.stack([(part.targets != IGNORED).sum() for part in micro_batches]).sum()
    run.layout.sum_over_data(count)
    return count.clamp(min=1)


def backward(run: Run, micro_batches: list[MicroBatch], tokens: Tensor | int) -> Tensor:
    """Gradients of the mean loss over all `tokens` of all ranks; gives this rank's summed loss,
    float32 scalar.
    """
    losses = torch.zeros((), device=run.meeting.device)
    for index, micro_batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with run.layout.backward(last):
            loss = run.layout.loss(*micro_batch)
            (loss * (1.0 / tokens)).backward()  # type: ignore[no-untyped-call]
            if last and run.busy is not None:
                run.busy.end()  # leaving waits for the gradients of others
        losses += loss.detach()
    return losses


def rehearse(run: Run) -> None:
    """A forward and backward pass that changes nothing: compiles, opens connections,
    finds out-of-memory early.
    """
    micro_batch = run.feed.take(0)[0]
    with run.layout.backward(last=True):
        (run.layout.loss(*micro_batch) * 0.0).backward()  # type: ignore[no-untyped-call]
    run.layout.zero_gradients()
    forget_load(run.layout.model)


def evaluate(run: Run, evaluation: Evaluation, step: int) -> None:
    """Tells the held-out loss after `step`."""
    run.reports.phase(ProgressPhase.EVAL)
    with run.watchdog.during(ProgressPhase.EVAL):
        reading = evaluation.measure()
    run.reports.evaluated(step, reading.loss, reading.bits_per_byte)


def stopped(run: Run, step: int, saved: bool) -> ExitCode:
    """The end of a training that was asked to stop; says what a person may rely on."""
    kept = "saved: the same command goes on from there" if saved else "not saved"
    run.reports.say(f"stopped as asked after step {step}, {kept}")
    return ExitCode.PREEMPTED_SAVED if saved else ExitCode.PREEMPTED_NOT_SAVED


def finish(run: Run, step: int) -> ExitCode:
    """The end of training. The result is the last checkpoint,
    so a run that cannot save it has not finished.
    """
    if run.series is not None and run.series.committed_step != step:
        raise TrainerExit(
            ExitCode.RETRY_IN_PLACE, f"all {step} steps are done, but the last could not be saved"
        )
    run.reports.say(f"done: {step} steps")
    return ExitCode.DONE


def settle() -> None:
    """After the first step nothing that lives is garbage: collections would only stall single ranks."""
    gc.collect()
    gc.freeze()
    gc.disable()


class Readings:
    """Brings what `update` measured to the host: at once on a CPU, one step later on a GPU,
    which never waits.
    """

    def __init__(self, run: Run, saves: Saves) -> None:
        self._run, self._saves = run, saves
        self._lag = 1 if run.meeting.device.type == "cuda" else 0
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, measured: Tensor) -> None:
        """Sends off what step number `step` measured, and reads what has arrived."""
        event = None
        if self._lag:
            host = torch.empty(measured.shape, dtype=measured.dtype, pin_memory=True)
            host.copy_(measured, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            measured = host
        self._pending.append((step, measured, event))
        while len(self._pending) > self._lag:
            self._read()

    def drain(self) -> None:
        """Reads all that was sent off: a step that was not finite must never be saved over."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        step, measured, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        loss, norm, finite, *loads = measured.tolist()
        config = self._run.config
        rate = learning_rate(step - 1, config.optim, config.horizon_steps)
        if not finite:
            self._run.reports.nonfinite()
            self._saves.settle()
            raise TrainerExit(
                ExitCode.NON_FINITE,
                f"step {step}: loss {loss:g}, gradient norm {norm:g}: not finite, step not taken",
            )
        tokens = step * config.batch.tokens_per_step
        self._run.reports.step(StepReport(step, loss, norm, rate, tokens, tuple(loads)))
