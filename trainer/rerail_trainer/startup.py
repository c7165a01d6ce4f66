"""From a configuration to a run that is ready for its first step.

The order here is the order of the start.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from rerail_api.contract import ExitCode, ProgressPhase

from .advice import Advice
from .busy import Busy, clock_for
from .checkpoint.save import Observer, Training
from .checkpoint.series import Series, Start, open_series
from .checkpoint.state import TrainingState, seed_random_state
from .checkpoint.storage import open_storage
from .compiling import compile_blocks, compiling
from .config import Config, config_hash, identity_of
from .data.feed import Feed, share_of
from .data.source import open_source
from .data.windows import Source
from .environment import JobIdentity, RankIdentity
from .evaluate.during import Evaluation, held_out_of
from .failures import TrainerExit
from .loop import Run, rehearse, train
from .meeting import Meeting, meet, part
from .model import fill, fill_roughly, param_counts
from .optim import optimizer_for
from .parallel.layouts import lay_out
from .parallel.mesh import mesh_of
from .report.metrics import serve
from .report.peak import measured_peak, memory_peak, stated_peak
from .report.progress import ProgressLog
from .report.reports import Launch, Reports
from .stop import StopRequest
from .watchdog import Watchdog
from .weights.beginning import Beginning
from .weights.tokenizer_files import leave_tokenizer, of_one_tokenizer


@dataclass(frozen=True)
class Circumstances:
    """What the environment says, parsed: everything besides the configuration."""

    rank: RankIdentity
    job: JobIdentity
    progress: ProgressLog
    """Of rank 0; the others' says nothing."""
    lines: ProgressLog
    """Of this rank."""
    stop: StopRequest
    watchdog: Watchdog
    advice: Advice


def run(config: Config, circumstances: Circumstances, observer: Observer | None = None) -> ExitCode:
    """Trains to the end, a stop, or a TrainerExit;
    takes the process groups down where the end was orderly.
    """
    reports = Reports(config, circumstances.rank.rank == 0, circumstances.progress, circumstances.job.round)
    reports.passed("imported")
    try:
        code = _run(config, circumstances, reports, observer)
    except TrainerExit as refusal:
        reports.ended(refusal.code, refusal.message)
        raise
    except Exception as error:
        reports.ended(None, f"{type(error).__name__}: {error}")
        raise
    reports.ended(code, code.name.lower())
    return code


def _run(
    config: Config, circumstances: Circumstances, reports: Reports, observer: Observer | None
) -> ExitCode:
    if config.metrics.port and circumstances.rank.rank == 0:
        serve(reports.metrics, config.metrics.port)
    source = open_source(config)
    held_out = held_out_of(config, source)
    mesh = mesh_of(config, circumstances.rank.world_size)
    share = share_of(config, mesh.at(circumstances.rank.rank).data, mesh.data_size)
    meeting = meet(circumstances.rank, config)
    reports.passed("met")
    series = _series(config, meeting, circumstances.job, reports)
    code = ExitCode.RETRY_IN_PLACE
    try:
        layout = lay_out(config, meeting)
        layout.model.recompute(config.parallel.recompute)
        if config.parallel.compile:
            compile_blocks(layout.model, meeting.device, mesh.tensor > 1 or mesh.expert > 1)
        optimizer = optimizer_for(layout, config.optim)
        feed = Feed(config, source, share, meeting.device)
        evaluation = None if held_out is None else Evaluation(config, held_out, layout, meeting.device)
        stop, watchdog, advice = circumstances.stop, circumstances.watchdog, circumstances.advice
        ready = Run(
            config, meeting, layout, optimizer, feed, series, reports, stop, watchdog, evaluation, advice
        )
        ready.busy = _busy(meeting, circumstances.lines)
        start = _prepare(ready, source, observer)
        _leave_tokenizer(ready, source)
        circumstances.stop.training_begins()
        reports.phase(ProgressPhase.TRAIN)
        code = train(ready, start)
        meeting.control.barrier()
    finally:
        if series is not None:
            series.close(code)
    part()
    return code


def _busy(meeting: Meeting, lines: ProgressLog) -> Busy | None:
    """None for a rank alone, which nobody waits for, and where nobody is told."""
    if not lines.wanted or meeting.world_size == 1:
        return None
    return Busy(partial(lines.busy, meeting.identity.rank), clock_for(meeting.device))


def _series(config: Config, meeting: Meeting, job: JobIdentity, reports: Reports) -> Series | None:
    if not config.checkpoint.dir:
        reports.say("checkpoint.dir is not set: nothing will be saved")
        return None
    series = open_series(config.checkpoint, meeting.control, job, meeting.identity)
    series.say = reports.say
    return series


def _prepare(ready: Run, source: Source, observer: Observer | None) -> int:
    """Gives model and generators their values, from a checkpoint or the seed;
    the number of finished steps.
    """
    config, rank = ready.config, ready.meeting.identity.rank
    fill_roughly(ready.layout.model)
    ready.reports.phase(ProgressPhase.COMPILE)
    with compiling() if config.parallel.compile else nullcontext():
        rehearse(ready)
    ready.reports.passed("compiled")
    seed_random_state(config.run.seed, 0, rank)
    start = _resume(ready, source) if ready.series is not None else Start(None)
    if ready.series is not None and observer is not None:
        ready.series.observe_saves(observer)
    if start.loaded is None:
        fill(ready.layout.model, config.run.seed)
    if start.spoilt:
        ready.optimizer.reset()
    if config.run.init_from and start.loaded is None:
        Beginning(ready.meeting.control, config.run.init_from, ready.reports.say).fill(ready.layout.model)
    ready.reports.passed("loaded")
    ready.reports.started(start.step, start.step if start.loaded else None, _launch(ready))
    _introduce(ready, start)
    return start.step


def _launch(ready: Run) -> Launch:
    """The circumstances of this start; on rank 0 of a GPU run it measures what products can reach."""
    reports, meeting = ready.reports, ready.meeting
    device, first = meeting.device, meeting.control.first
    reports.follow("data_wait_seconds_total", lambda: ready.feed.wait_seconds)
    reports.follow("memory_peak_bytes", lambda: memory_peak(device))
    return Launch(
        world_size=meeting.world_size,
        layout=str(ready.layout.place.mesh),
        device=device.type,
        torch=torch.__version__,
        stated_peak=stated_peak(device, ready.config.metrics.peak_tflops) if first else 0.0,
        measured_peak=measured_peak(device) if first else 0.0,
    )


def _leave_tokenizer(ready: Run, source: Source) -> None:
    """Puts it into the checkpoint folder: whoever opens a step there needs it."""
    weights, folder, name = ready.config.run.init_from, ready.config.checkpoint.dir, source.tokenizer

    def leave() -> None:
        if weights and not of_one_tokenizer(weights, name):
            ready.reports.say(f"the tokenizer of the data is not that of {weights}: are their ids the same?")
        if folder:
            leave_tokenizer(open_storage(folder), name, source.end)

    if name:
        ready.meeting.control.first_rank_does(leave)


def _resume(ready: Run, source: Source) -> Start:
    config = ready.config
    training = Training(
        identity_of(config),
        config_hash(config),
        source.digest,
        str(ready.layout.place.mesh),
        source.tokenizer,
    )
    state = TrainingState(ready.layout.model, ready.optimizer)
    assert ready.series is not None  # noqa: S101
    return ready.series.resume(config.checkpoint, training, state, config.run.seed)


def _introduce(ready: Run, start: Start) -> None:
    reports, meeting = ready.reports, ready.meeting
    count = param_counts(ready.config.model)["total"]
    mesh = ready.layout.place.mesh
    reports.damaged(start.set_aside)
    reports.say(
        f"{count:,} parameters on {meeting.world_size} ranks "
        f"({mesh}, {meeting.device.type}), "
        f"{ready.feed.windows:,} windows of {ready.config.model.seq_len} tokens, torch {torch.__version__}"
    )
    for note in ready.feed.notes:
        reports.say(note)
    if start.loaded is None:
        reports.say("starting from step 0")
    else:
        changed = "" if start.loaded.same_world else f", written by {start.loaded.manifest.world_size} ranks"
        reports.say(f"resumed from step {start.step}{changed}")
        reports.metrics.set("checkpoint_load_seconds", start.loaded.seconds)
        reports.metrics.set("checkpoint_read_bytes", start.loaded.read_bytes)
