"""The whole plan of a training: its parts, how it lies on the machine, how long it takes. Torch-free."""

from dataclasses import asdict, dataclass
from typing import Any

from rerail_api.ettr import Interruptions, best_interval, ettr, mean_between, necessary_dead
from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig

from .forecast import Forecast, expected_mfu, forecast
from .gpus import GIB
from .memory import state_bytes
from .parts import active_of, flops_per_token, parts_of, total_of
from .reasons import needs, remedies, why
from .search import Candidate, best, candidates, configured, uneven, usable_bytes
from .traffic import Machine

DEFAULT_NODE_HOURS = 1000 * 24 / 6.5
"""Mean time between interruptions of one node: 6.5 per 1,000 node-days, Meta's RSC-1 (arXiv 2410.21680)."""
DEFAULT_DEAD_SECONDS = 90.0
"""From a failure to the next step with a gang restarted in place and spares ready: detect, stop, replace,
meet, load."""
ETTR_GOAL = 0.99
STAGING_BYTES_PER_SECOND = 25e9
"""From a GPU to pinned memory, over PCIe 5 with eight GPUs at once; the stall of an asynchronous save."""
NODE_STORAGE_BYTES_PER_SECOND = 1e9
"""What one node writes to shared storage, unless said otherwise."""


@dataclass(frozen=True)
class Question:
    """What a plan is asked for besides the configuration; None leaves a figure to its default."""

    machine: Machine
    keep_layout: bool = False
    mfu: float | None = None
    tokens: int | None = None
    node_hours: float | None = None
    dead_seconds: float | None = None
    stall_seconds: float | None = None
    storage_bytes_per_second: float | None = None


@dataclass(frozen=True)
class Saving:
    """A checkpoint, and how often to make one; seconds, bytes, and the ETTR that follows."""

    bytes: int
    save_seconds: float
    stall_seconds: float
    interval_seconds: float
    interval_steps: int
    interruption_hours: float
    dead_seconds: float
    ettr: float
    goal_dead_seconds: float | None
    """What an interruption may cost besides for an ETTR of ETTR_GOAL; None: no restart is fast enough."""


@dataclass(frozen=True)
class Plan:
    config: Config
    machine: Machine
    chosen: Candidate
    usable: int
    why: list[str]
    forecast: Forecast
    saving: Saving

    @property
    def days(self) -> float:
        """With interruptions."""
        return self.forecast.days / self.saving.ettr if self.saving.ettr else float("inf")

    @property
    def flags(self) -> list[str]:
        """The settings that make a training run as planned."""
        setup = self.chosen.setup
        return [
            f"--parallel.shard={setup.mesh.shard}",
            f"--parallel.tensor={setup.mesh.tensor}",
            f"--parallel.expert={setup.mesh.expert}",
            f"--parallel.recompute={setup.recompute}",
            f"--batch.micro_batch={setup.micro_batch}",
            f"--checkpoint.every_seconds={max(round(self.saving.interval_seconds), 1)}",
        ]

    def as_json(self) -> dict[str, Any]:
        model, setup = self.config.model, self.chosen.setup
        return {
            "parameters": {
                "total": total_of(model),
                "active": active_of(model),
                "parts": {part.name: part.total for part in parts_of(model)},
            },
            "flops_per_token": flops_per_token(model),
            "machine": {**asdict(self.machine), "gpu": self.machine.gpu.name, "usable_bytes": self.usable},
            "layout": {
                "text": str(setup.mesh),
                "replicas": setup.mesh.replicas,
                **{axis: getattr(setup.mesh, axis) for axis in ("shard", "tensor", "expert")},
                "recompute": setup.recompute,
                "micro_batch": setup.micro_batch,
                "micro_batches": setup.micro_batches,
                "flags": self.flags,
                "why": self.why,
            },
            "memory_bytes": {**asdict(self.chosen.memory), "total": self.chosen.memory.total},
            "step_model_seconds": {**asdict(self.chosen.time), "total": self.chosen.time.total},
            "forecast": asdict(self.forecast),
            "checkpoint": asdict(self.saving),
            "days_with_interruptions": self.days,
        }


def plan(config: Config, question: Question) -> Plan:
    """Raises BadConfig where nothing fits or divides, with what would."""
    machine = question.machine
    usable = usable_bytes(machine)
    if question.keep_layout:
        chosen, reasons = _judged(config, machine, usable), ["as configured"]
    else:
        chosen, reasons = _searched(config, machine, usable)
    tokens = question.tokens or config.train.steps * config.batch.tokens_per_step
    mfu = (question.mfu, "as given") if question.mfu else expected_mfu(config, machine, chosen.time.total)
    expected = forecast(config, machine, mfu, tokens)
    return Plan(
        config, machine, chosen, usable, reasons, expected, _saving(config, question, expected, chosen)
    )


def _searched(config: Config, machine: Machine, usable: int) -> tuple[Candidate, list[str]]:
    found = list(candidates(config, machine))
    if not found:
        raise BadConfig(uneven(config, machine.gpus))
    chosen = best(found, usable)
    if chosen is None:
        least = min(found, key=lambda one: one.memory.total)
        raise BadConfig(f"no layout fits: {needs(least, machine)}; {_would_fit(config, machine)}")
    return chosen, why(chosen, found, usable)


def _judged(config: Config, machine: Machine, usable: int) -> Candidate:
    own = configured(config, machine)
    if own.memory.total <= usable:
        return own
    other = best(list(candidates(config, machine)), usable)
    instead = f"{other.setup.mesh}, recompute {other.setup.recompute} would fit" if other else ""
    raise BadConfig(
        f"{own.setup.mesh}, recompute {own.setup.recompute}, micro-batch {own.setup.micro_batch} needs "
        f"{own.memory.total / GIB:.1f} GiB per GPU of {usable / GIB:.1f} that can be used; "
        f"{instead or _would_fit(config, machine)}"
    )


def _would_fit(config: Config, machine: Machine) -> str:
    words = remedies(config, machine)
    return "what would fit: " + " or ".join(words) if words else "nothing that was tried would fit"


def _saving(config: Config, question: Question, expected: Forecast, chosen: Candidate) -> Saving:
    machine, size = question.machine, state_bytes(config)
    storage = question.storage_bytes_per_second or NODE_STORAGE_BYTES_PER_SECOND * machine.nodes
    own = chosen.memory.weights + chosen.memory.moments
    stall = own / STAGING_BYTES_PER_SECOND if question.stall_seconds is None else question.stall_seconds
    lag = size / storage
    between = mean_between(machine.nodes, 1000 * 24 / (question.node_hours or DEFAULT_NODE_HOURS))
    dead = DEFAULT_DEAD_SECONDS if question.dead_seconds is None else question.dead_seconds
    # A checkpoint is as old as its writing takes when it can first be used: that is lost as well.
    what = Interruptions(between, dead + lag, stall)
    # One save at a time, and none more often than once a step.
    interval = max(best_interval(what), lag, expected.step_seconds)
    steps = max(round(interval / expected.step_seconds), 1)
    return Saving(
        size,
        lag,
        stall,
        interval,
        steps,
        between / 3600,
        dead,
        ettr(what, interval),
        _dead_for_goal(what, lag, expected.step_seconds),
    )


def _dead_for_goal(what: Interruptions, lag: float, step_seconds: float) -> float | None:
    """Seconds; `lag`: of the dead time those that are the storage's."""
    most = necessary_dead(ETTR_GOAL, what.mean_between, what.stall, max(lag, step_seconds))
    return most - lag if most is not None and most >= lag else None
