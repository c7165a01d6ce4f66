"""What Prometheus sees. Figures of a job live as long as the job does and come from the leader alone.

Counters carry no job's name: they would stay for ever, one set per job that ever ran.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerail_api.status import Phase, TrainingJobStatus
from rerail_operator.core.plan import Plan
from rerail_operator.core.world import World

from .keys import JobKey

Number = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure of the process, read when asked for."""

    name: str
    help: str
    read: Number
    counter: bool = False


class JobFigures(Collector):
    """The newest status of each job, rendered at each scrape; gone as soon as the job is."""

    def __init__(self, is_live: Callable[[JobKey], bool]) -> None:
        self._is_live = is_live
        self._statuses: dict[JobKey, TrainingJobStatus] = {}

    def put(self, key: JobKey, status: TrainingJobStatus) -> None:
        self._statuses[key] = status

    def collect(self) -> Iterator[Metric]:
        for key in [key for key in self._statuses if not self._is_live(key)]:
            del self._statuses[key]
        yield from _phases(self._statuses)
        families = [_family(name, text) for name, text, _ in _FIGURES]
        for key, status in self._statuses.items():
            for family, (_, _, read) in zip(families, _FIGURES, strict=True):
                if (value := read(status)) is not None:
                    family.add_metric(key, float(value))
        yield from families
        lost = GaugeMetricFamily(
            "rerail_job_lost_seconds",
            "Seconds of the job's wall clock lost so far, by stage of the ledger.",
            labels=["namespace", "job", "stage"],
        )
        for key, status in self._statuses.items():
            for stage, seconds in status.ledger.lost_seconds.items():
                lost.add_metric([*key, stage.value], seconds)
        yield lost
        cost = GaugeMetricFamily(
            "rerail_job_lost_seconds_by_class",
            "Seconds that interruptions which are over have cost, replay and saves included.",
            labels=["namespace", "job", "class"],
        )
        for key, status in self._statuses.items():
            for kind, seconds in status.ledger.lost_seconds_by_class.items():
                cost.add_metric([*key, kind.value], seconds)
        yield cost


class Totals:
    """Counts over all jobs since this process leads, taken from what was written, so a repeat counts once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seen: dict[str, TrainingJobStatus] = {}
        self._restarts = Counter("rerail_restarts", "Restarts of gangs.", ["charged"], registry=registry)
        self._incidents = Counter("rerail_incidents", "Interruptions of jobs.", ["class"], registry=registry)
        self._finished = Counter("rerail_jobs_finished", "Jobs that ended.", ["phase"], registry=registry)

    def take(self, uid: str, status: TrainingJobStatus) -> None:
        """What was there when a job is first seen happened before this process led."""
        before, self._seen[uid] = self._seen.get(uid), status
        if before is None or before is status:
            return
        charged = max(0, status.restarts.charged - before.restarts.charged)
        total = max(0, status.restarts.total - before.restarts.total)
        self._restarts.labels("true").inc(charged)
        self._restarts.labels("false").inc(max(0, total - charged))
        newest = max((incident.number for incident in before.incidents), default=0)
        for incident in status.incidents:
            if incident.number > newest:
                self._incidents.labels(incident.class_.value).inc()
        if status.finished and not before.finished and status.phase is not None:
            self._finished.labels(status.phase.value).inc()

    def keep_only(self, uids: Iterable[str]) -> None:
        live = set(uids)
        self._seen = {uid: status for uid, status in self._seen.items() if uid in live}


class ProcessFigures(Collector):
    def __init__(self, gauges: Iterable[Gauge]) -> None:
        self._gauges = tuple(gauges)

    def collect(self) -> Iterator[Metric]:
        for gauge in self._gauges:
            family = CounterMetricFamily if gauge.counter else GaugeMetricFamily
            yield family(gauge.name, gauge.help, value=float(gauge.read()))


class Metrics:
    """`passed` goes into the engine's `on_pass`."""

    def __init__(self, is_live: Callable[[JobKey], bool], gauges: Iterable[Gauge]) -> None:
        self.registry = CollectorRegistry()
        self._jobs = JobFigures(is_live)
        self._uids: dict[JobKey, str] = {}
        self._is_live = is_live
        self._totals = Totals(self.registry)
        self.registry.register(self._jobs)
        self.registry.register(ProcessFigures(gauges))
        ProcessCollector(registry=self.registry)

    def passed(self, key: JobKey, world: World, plan: Plan) -> None:
        if world.job is None:
            return
        self._jobs.put(key, plan.status or world.job.status)
        self._totals.take(world.uid, world.job.status)
        if self._uids.get(key) != world.uid:
            self._uids = {known: uid for known, uid in self._uids.items() if self._is_live(known)}
            self._uids[key] = world.uid
            self._totals.keep_only(self._uids.values())


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["namespace", "job"])


def _phases(statuses: dict[JobKey, TrainingJobStatus]) -> Iterator[Metric]:
    one = GaugeMetricFamily(
        "rerail_job_phase", "1 for the phase that the job is in.", labels=["namespace", "job", "phase"]
    )
    count = GaugeMetricFamily("rerail_jobs", "Jobs by phase.", labels=["phase"])
    numbers = dict.fromkeys(Phase, 0)
    for key, status in statuses.items():
        for phase in Phase:
            one.add_metric([*key, phase.value], float(status.phase is phase))
        if status.phase is not None:
            numbers[status.phase] += 1
    for phase, number in numbers.items():
        count.add_metric([phase.value], number)
    yield one
    yield count


def _timestamp(at: datetime | None) -> float | None:
    return at.timestamp() if at is not None else None


_FIGURES: tuple[tuple[str, str, Callable[[TrainingJobStatus], float | None]], ...] = (
    ("rerail_job_step", "Last finished step.", lambda s: s.progress.step),
    ("rerail_job_nodes_ready", "Node ranks whose ranks all run.", lambda s: s.nodes.ready),
    ("rerail_job_nodes_desired", "Node ranks in the gang.", lambda s: s.nodes.desired),
    ("rerail_job_spares_ready", "Spares that stand ready.", lambda s: s.nodes.spares),
    (
        "rerail_job_last_progress_timestamp_seconds",
        "When the job last reported a step.",
        lambda s: _timestamp(s.progress.time),
    ),
    (
        "rerail_job_last_checkpoint_timestamp_seconds",
        "When the newest checkpoint was committed.",
        lambda s: _timestamp(s.last_checkpoint.time) if s.last_checkpoint else None,
    ),
    (
        "rerail_job_stragglers",
        "Ranks named as slower than the others, at most 16.",
        lambda s: len(s.stragglers),
    ),
    ("rerail_job_ettr_ratio", "Effective training time ratio, measured.", lambda s: s.ledger.ettr),
    (
        "rerail_job_predicted_ettr_ratio",
        "Effective training time ratio that the model predicts from the job's own figures.",
        lambda s: s.ledger.forecast.ettr if s.ledger.forecast else None,
    ),
    (
        "rerail_job_model_checkpoint_interval_seconds",
        "Seconds of training between checkpoints that the model would choose.",
        lambda s: s.ledger.forecast.interval_seconds if s.ledger.forecast else None,
    ),
    (
        "rerail_job_told_checkpoint_interval_seconds",
        "Seconds of training between checkpoints that the ranks are told to keep.",
        lambda s: s.checkpoint_interval_seconds,
    ),
    (
        "rerail_job_dead_seconds",
        "Mean seconds of an interruption, replay left out.",
        lambda s: s.ledger.forecast.dead_seconds if s.ledger.forecast else None,
    ),
)
