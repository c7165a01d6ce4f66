"""What a schema cannot say: every rule once, as CEL for the API server and as its Python twin.

A rule holds or it does not; its message says what to write instead. `RULES` are facts about one
object, `TRANSITIONS` about two versions of it. Not here, because CEL cannot see or bound them: fields
of the template that are not declared (the strict dry run refuses those), a template of which only
undeclared keys changed (the template is frozen at admission), and several accelerators under
numProcPerNode auto (their names belong to the operator).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from rerail_api.contract import RESERVED_ENV, TRAINER_CONTAINER, VOLUME_PREFIX
from rerail_api.job import TrainingJob
from rerail_api.messages import Problem
from rerail_api.spec import AUTO, CheckpointSpec, Launcher, TrainingJobSpec
from rerail_api.status import TERMINAL_CONDITIONS, TrainingJobStatus

MAX_NAME: Final = 40
"""A pod is called job-xxxxx-round-slot and its name is a DNS label of 63 characters at most: 5 characters
of the job UID, 10 digits of round, 5 of slot and 3 hyphens leave this many."""

RESERVED_PREFIX: Final = "RERAIL_"
TORCHELASTIC_PREFIX: Final = "PET_"
PLAIN_RESERVED_ENV: Final = tuple(name for name in RESERVED_ENV if not name.startswith(RESERVED_PREFIX))
TORCHRUN_MODULES: Final = ("torch.distributed.run", "torch.distributed.launch")
_NAME_FORM: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True)
class Rule:
    """A fact that must hold of one TrainingJob.

    `at` is the schema path that carries the CEL rule (`self` is what lies there, "" the whole object);
    `field` is the field below it that is to blame, as in `.path`.
    """

    name: str
    at: str
    cel: str
    message: str
    holds: Callable[[TrainingJob], bool]
    field: str = ""

    @property
    def path(self) -> str:
        """Where people see the problem."""
        return f"{self.at}{self.field}".lstrip(".")


@dataclass(frozen=True)
class Transition:
    """A fact that must hold of an old and a new version of one TrainingJob."""

    name: str
    at: str
    cel: str
    message: str
    holds: Callable[[TrainingJob, TrainingJob], bool]
    field: str = ""

    @property
    def path(self) -> str:
        """Where people see the problem."""
        return f"{self.at}{self.field}"


def check(job: TrainingJob) -> tuple[Problem, ...]:
    """What is wrong with one object, in the order of the table."""
    return tuple(Problem(rule.path, rule.message) for rule in RULES if not rule.holds(job))


def check_change(old: TrainingJob, new: TrainingJob) -> tuple[Problem, ...]:
    """What is wrong with going from `old` to `new`, in the order of the table."""
    return tuple(Problem(rule.path, rule.message) for rule in TRANSITIONS if not rule.holds(old, new))


def _containers(job: TrainingJob) -> list[dict[str, Any]]:
    containers: list[dict[str, Any]] = job.spec.template["spec"]["containers"]
    return containers


def _trainers(job: TrainingJob) -> Iterator[dict[str, Any]]:
    return (c for c in _containers(job) if c["name"] == TRAINER_CONTAINER)


def _name_fits(job: TrainingJob) -> bool:
    return len(job.metadata.name) <= MAX_NAME and re.fullmatch(_NAME_FORM, job.metadata.name) is not None


def _one_trainer(job: TrainingJob) -> bool:
    return sum(1 for _ in _trainers(job)) == 1


def _has_command(job: TrainingJob) -> bool:
    return all(c.get("command") and c["command"][0] for c in _trainers(job))


def _starts_torchrun(container: dict[str, Any]) -> bool:
    command = container.get("command") or []
    words = [*command, *(container.get("args") or [])]
    by_name = bool(command) and command[0].rsplit("/", 1)[-1] == "torchrun"
    return by_name or any(word in TORCHRUN_MODULES for word in words)


def _torchrun_per_node(job: TrainingJob) -> bool:
    return job.spec.launcher is not Launcher.PER_RANK or not any(map(_starts_torchrun, _trainers(job)))


def _env_names(job: TrainingJob) -> list[str]:
    return [env["name"] for c in _trainers(job) for env in c.get("env") or []]


def _env_is_free(job: TrainingJob) -> bool:
    return not any(n in PLAIN_RESERVED_ENV or n.startswith(RESERVED_PREFIX) for n in _env_names(job))


def _torchrun_env_is_free(job: TrainingJob) -> bool:
    per_rank = job.spec.launcher is Launcher.PER_RANK
    return per_rank or not any(n.startswith(TORCHELASTIC_PREFIX) for n in _env_names(job))


def _volumes_are_free(job: TrainingJob) -> bool:
    volumes = job.spec.template["spec"].get("volumes") or []
    return not any(volume["name"].startswith(VOLUME_PREFIX) for volume in volumes)


def _pod_field_in(field: str, *allowed: str) -> Callable[[TrainingJob], bool]:
    return lambda job: (job.spec.template["spec"].get(field) or "") in ("", *allowed)


def _bounds_have_auto(spec: CheckpointSpec) -> bool:
    return spec.interval == AUTO or (spec.min_interval_seconds, spec.max_interval_seconds) == (None, None)


def _bounds_in_order(spec: CheckpointSpec) -> bool:
    least, most = spec.min_interval_seconds, spec.max_interval_seconds
    return least is None or most is None or least <= most


_IN_TRAINER: Final = f"self.spec.containers.all(c, c.name != '{TRAINER_CONTAINER}' || "
_PLAIN_LIST: Final = ", ".join(f"'{name}'" for name in PLAIN_RESERVED_ENV)
_MODULE_LIST: Final = ", ".join(f"'{name}'" for name in TORCHRUN_MODULES)
_TORCHRUN_MESSAGE: Final = (
    "torchrun starts the ranks itself: write launcher: PerNode, or keep PerRank and write the command of "
    "one rank, as in [python, train.py]"
)

RULES: Final = (
    Rule(
        name="name-fits",
        at="",
        field=".metadata.name",
        cel=f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{_NAME_FORM}')",
        message=f"use at most {MAX_NAME} lower-case letters, digits and '-', beginning and "
        "ending with a letter or digit; pod names are made from it",
        holds=_name_fits,
    ),
    Rule(
        name="path-is-absolute",
        at="spec.checkpoint",
        field=".path",
        cel="self.path.startsWith('/')",
        message="write an absolute folder inside the container, as in /checkpoints",
        holds=lambda job: job.spec.checkpoint.path.startswith("/"),
    ),
    Rule(
        name="path-stays-below",
        at="spec.checkpoint",
        field=".path",
        cel="!self.path.matches('(^|/)[.][.](/|$)')",
        message="write the folder without '..'",
        holds=lambda job: ".." not in job.spec.checkpoint.path.split("/"),
    ),
    Rule(
        name="interval-bounds-need-auto",
        at="spec.checkpoint",
        field=".interval",
        cel=f"(has(self.interval) && string(self.interval) == '{AUTO}') || "
        "!(has(self.minIntervalSeconds) || has(self.maxIntervalSeconds))",
        message="write interval: auto, or remove minIntervalSeconds and maxIntervalSeconds: they bound what "
        "auto chooses",
        holds=lambda job: _bounds_have_auto(job.spec.checkpoint),
    ),
    Rule(
        name="interval-bounds-in-order",
        at="spec.checkpoint",
        field=".minIntervalSeconds",
        cel="!has(self.minIntervalSeconds) || !has(self.maxIntervalSeconds) || "
        "self.minIntervalSeconds <= self.maxIntervalSeconds",
        message="write minIntervalSeconds no larger than maxIntervalSeconds",
        holds=lambda job: _bounds_in_order(job.spec.checkpoint),
    ),
    Rule(
        name="one-trainer",
        at="spec.template",
        field=".spec.containers",
        cel=f"self.spec.containers.exists_one(c, c.name == '{TRAINER_CONTAINER}')",
        message=f"name exactly one container {TRAINER_CONTAINER}: the one whose command starts a rank",
        holds=_one_trainer,
    ),
    Rule(
        name="command-is-written",
        at="spec.template",
        field=".spec.containers",
        cel=_IN_TRAINER + "(has(c.command) && c.command.size() > 0 && c.command[0] != ''))",
        message=f"container {TRAINER_CONTAINER}: write its command, as in [python, train.py]; Rerail "
        "starts it itself and cannot read it from the image",
        holds=_has_command,
    ),
    Rule(
        name="torchrun-is-per-node",
        at="spec",
        field=".launcher",
        cel="self.launcher != 'PerRank' || "
        + _IN_TRAINER.replace("self.", "self.template.")
        + "!((has(c.command) && c.command.size() > 0 && "
        "(c.command[0] == 'torchrun' || c.command[0].endsWith('/torchrun'))) || "
        f"(has(c.command) && c.command.exists(w, w in [{_MODULE_LIST}])) || "
        f"(has(c.args) && c.args.exists(w, w in [{_MODULE_LIST}]))))",
        message=_TORCHRUN_MESSAGE,
        holds=_torchrun_per_node,
    ),
    Rule(
        name="env-is-free",
        at="spec.template",
        field=".spec.containers",
        cel=_IN_TRAINER
        + "!has(c.env) || !c.env.exists(e, "
        + f"e.name.startsWith('{RESERVED_PREFIX}') || e.name in [{_PLAIN_LIST}]))",
        message=f"container {TRAINER_CONTAINER}: remove {', '.join(PLAIN_RESERVED_ENV)} and names beginning "
        f"with {RESERVED_PREFIX} from env; Rerail sets them for every rank",
        holds=_env_is_free,
    ),
    Rule(
        name="torchrun-env-is-free",
        at="spec",
        field=".template",
        cel="self.launcher != 'PerNode' || "
        + _IN_TRAINER.replace("self.", "self.template.")
        + f"!has(c.env) || !c.env.exists(e, e.name.startsWith('{TORCHELASTIC_PREFIX}')))",
        message=f"container {TRAINER_CONTAINER}: remove names beginning with {TORCHELASTIC_PREFIX} from env; "
        "under launcher PerNode Rerail sets them",
        holds=_torchrun_env_is_free,
    ),
    Rule(
        name="volume-names-are-free",
        at="spec.template",
        field=".spec.volumes",
        cel=f"!has(self.spec.volumes) || !self.spec.volumes.exists(v, v.name.startsWith('{VOLUME_PREFIX}'))",
        message=f"rename volumes beginning with {VOLUME_PREFIX}: the prefix is Rerail's own",
        holds=_volumes_are_free,
    ),
    Rule(
        name="no-node-name",
        at="spec.template",
        field=".spec.nodeName",
        cel="!has(self.spec.nodeName) || self.spec.nodeName == ''",
        message="remove nodeName: Rerail places the pods; to choose nodes, write nodeSelector or required "
        "node affinity",
        holds=_pod_field_in("nodeName"),
    ),
    Rule(
        name="default-scheduler",
        at="spec.template",
        field=".spec.schedulerName",
        cel="!has(self.spec.schedulerName) || self.spec.schedulerName in ['', 'default-scheduler']",
        message="remove schedulerName, or write default-scheduler: Rerail places the gang, kube-scheduler "
        "binds it",
        holds=_pod_field_in("schedulerName", "default-scheduler"),
    ),
    Rule(
        name="restart-never",
        at="spec.template",
        field=".spec.restartPolicy",
        cel="!has(self.spec.restartPolicy) || self.spec.restartPolicy in ['', 'Never']",
        message="remove restartPolicy, or write Never: Rerail restarts the ranks, the kubelet must not",
        holds=_pod_field_in("restartPolicy", "Never"),
    ),
    Rule(
        name="one-end",
        at="status",
        field=".conditions",
        cel="!has(self.conditions) || self.conditions.filter(c, c.type in ['Complete', 'Failed'] && "
        "c.status == 'True').size() <= 1",
        message="a job is Complete or Failed, never both",
        holds=lambda job: sum(job.status.is_true(kind) for kind in TERMINAL_CONDITIONS) <= 1,
    ),
)


def _frozen(field: str, read: Callable[[TrainingJobSpec], object]) -> Transition:
    return Transition(
        name=f"{field}-is-frozen",
        at="spec",
        field=f".{field}",
        cel=f"self.suspend || oldSelf.suspend || self.{field} == oldSelf.{field}",
        message=f"{field} cannot change while the job is not suspended: set suspend: true first; it may then "
        "change, also in the write that sets suspend: false",
        holds=lambda old, new: new.spec.suspend or old.spec.suspend or read(new.spec) == read(old.spec),
    )


def _keeps(read: Callable[[TrainingJobStatus], object]) -> Callable[[TrainingJob, TrainingJob], bool]:
    return lambda old, new: read(old.status) is None or read(new.status) == read(old.status)


def _end_stays(old: TrainingJob, new: TrainingJob) -> bool:
    return all(new.status.is_true(kind) for kind in TERMINAL_CONDITIONS if old.status.is_true(kind))


TRANSITIONS: Final = (
    _frozen("numNodes", lambda spec: spec.num_nodes),
    _frozen("numProcPerNode", lambda spec: spec.num_proc_per_node),
    _frozen("launcher", lambda spec: spec.launcher),
    _frozen("template", lambda spec: spec.template),
    Transition(
        name="round-never-falls",
        at="status",
        field=".round",
        cel="!has(oldSelf.round) || (has(self.round) && self.round >= oldSelf.round)",
        message="a round never falls within one job: read the job again and count up from there",
        holds=lambda old, new: new.status.round >= old.status.round,
    ),
    Transition(
        name="completion-time-stays",
        at="status",
        field=".completionTime",
        cel="!has(oldSelf.completionTime) || "
        "(has(self.completionTime) && self.completionTime == oldSelf.completionTime)",
        message="completionTime cannot change once it is set: a finished job stays as it ended",
        holds=_keeps(lambda status: status.completion_time),
    ),
    Transition(
        name="end-stays",
        at="status",
        field=".conditions",
        cel="!has(oldSelf.conditions) || oldSelf.conditions.filter(o, o.type in ['Complete', 'Failed'] && "
        "o.status == 'True').all(o, has(self.conditions) && self.conditions.exists(c, c.type == o.type && "
        "c.status == 'True'))",
        message="Complete and Failed stay True once they are: a finished job never runs again",
        holds=_end_stays,
    ),
)
