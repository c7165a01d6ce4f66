"""From a Pod object to what this machine starts: the argument list and the environment. Pure.

Mounts are not emulated. What the manifest says about files is translated here: the agent's folder, the token,
the termination log and the checkpoint folder lie below the workdir.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerail_api.contract import AGENT_MOUNT, LABEL_SLOT, RESERVED_ENV, TRAINER_CONTAINER, Env
from rerail_operator.shell.cluster import Object

LOOPBACK = "127.0.0.1"
RUN_MARK = "RERAIL_LOCAL_RUN"
REFERENCE = re.compile(r"\$\$|\$\(([-._A-Za-z][-._A-Za-z0-9]*)\)")
PYTHONS = frozenset({"python", "python3"})
TORCHRUN = ("-m", "torch.distributed.run")


@dataclass(frozen=True, slots=True)
class PodFolders:
    """Where the files of one pod lie on this machine."""

    agent: Path  # what the ConfigMap at AGENT_MOUNT holds
    token: Path
    checkpoints: Path
    termination_log: Path
    tmp: Path


@dataclass(frozen=True, slots=True)
class Host:
    """What every pod of this run inherits."""

    python: str  # stands for python and python3
    environment: Mapping[str, str]
    run_id: str
    cwd: Path
    per_slot: Sequence[Mapping[str, str]] = ()  # variables by the pod's slot: its share of the devices

    def for_pod(self, pod: Object) -> dict[str, str]:
        """What the pod inherits: this environment and its slot's share."""
        slot = int((pod["metadata"].get("labels") or {}).get(LABEL_SLOT, -1))
        share = self.per_slot[slot] if 0 <= slot < len(self.per_slot) else {}
        return {**self.environment, **share}


@dataclass(frozen=True, slots=True)
class Start:
    """What to start for a pod, and what of its manifest was left aside."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    left_aside: tuple[str, ...] = ()


def plan_start(pod: Object, host: Host, folders: PodFolders) -> Start:
    """The argument list and environment of the pod's trainer container. Raises KeyError without one."""
    container = trainer_of(pod)
    ours = _translated(folders)
    declared, left_aside = _declared(pod, container, ours)
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    argv = tuple(_word(expand(word, declared), folders) for word in words)
    others = [c["name"] for c in pod["spec"]["containers"] if c["name"] != TRAINER_CONTAINER]
    left_aside += tuple(f"container {name} is not started" for name in others)
    env = {**_inherited(host.python, host.for_pod(pod)), **declared, **ours}
    env |= {RUN_MARK: host.run_id, "TMPDIR": str(folders.tmp)}
    env.pop(Env.CA_FILE, None)
    return Start(_interpreted(argv, host.python), env, host.cwd, left_aside)


def trainer_of(pod: Object) -> Object:
    """The container that holds the ranks; KeyError where there is none."""
    for container in pod["spec"]["containers"]:
        if container["name"] == TRAINER_CONTAINER:
            found: Object = container
            return found
    raise KeyError(TRAINER_CONTAINER)


def agent_config_map(pod: Object) -> str | None:
    """The name of the ConfigMap that is mounted where the agent lies."""
    mounts = {m["mountPath"]: m["name"] for m in trainer_of(pod).get("volumeMounts") or ()}
    wanted = mounts.get(AGENT_MOUNT)
    for volume in pod["spec"].get("volumes") or ():
        if volume["name"] == wanted and "configMap" in volume:
            return str(volume["configMap"]["name"])
    return None


def expand(text: str, env: Mapping[str, str]) -> str:
    """Kubernetes' own expansion: $(NAME) where NAME is known, $$ for one $, anything else as written."""

    def value(match: re.Match[str]) -> str:
        if match.group(0) == "$$":
            return "$"
        return env.get(match.group(1), match.group(0))

    return REFERENCE.sub(value, text)


def _translated(folders: PodFolders) -> dict[str, str]:
    return {
        Env.TOKEN_FILE: str(folders.token),
        Env.CHECKPOINT_DIR: str(folders.checkpoints),
        Env.TERMINATION_LOG: str(folders.termination_log),
    }


def _inherited(python: str, environment: Mapping[str, str]) -> dict[str, str]:
    bin_dir = str(Path(python).parent)
    kept = {
        name: value
        for name, value in environment.items()
        if name not in RESERVED_ENV and not name.startswith(("PET_", "TORCHELASTIC_"))
    }
    return {**kept, "PATH": f"{bin_dir}:{kept.get('PATH', '/usr/bin:/bin')}"}


def _declared(
    pod: Object, container: Object, ours: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The container's variables in order; those whose source is not on this machine are named instead."""
    env: dict[str, str] = {}
    missing = []
    for entry in container.get("env") or ():
        name = entry["name"]
        if name in ours:
            env[name] = ours[name]
        elif "valueFrom" not in entry:
            env[name] = expand(str(entry.get("value", "")), env)
        elif (value := _field(pod, entry["valueFrom"])) is not None:
            env[name] = value
        else:
            missing.append(f"variable {name}: {', '.join(entry['valueFrom'])} is not read on this machine")
    sources = container.get("envFrom") or ()
    missing += [f"envFrom: {', '.join(source)} is not read on this machine" for source in sources]
    return env, tuple(missing)


def _field(pod: Object, source: Mapping[str, Any]) -> str | None:
    path: str = (source.get("fieldRef") or {}).get("fieldPath", "")
    metadata, spec = pod["metadata"], pod["spec"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((metadata.get(match.group(1)) or {}).get(match.group(2), ""))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": LOOPBACK,
        "status.podIPs": LOOPBACK,
        "status.hostIP": LOOPBACK,
        "status.hostIPs": LOOPBACK,
    }
    return known.get(path)


def _word(word: str, folders: PodFolders) -> str:
    head = AGENT_MOUNT + "/"
    return str(folders.agent / word.removeprefix(head)) if word.startswith(head) else word


def _interpreted(argv: tuple[str, ...], python: str) -> tuple[str, ...]:
    """`python`, `python3` and `torchrun` are our own interpreter's, before and after `--`."""
    if "--" not in argv:
        return _one_program(argv, python)
    cut = argv.index("--") + 1
    return _one_program(argv[:cut], python) + _one_program(argv[cut:], python)


def _one_program(argv: tuple[str, ...], python: str) -> tuple[str, ...]:
    match argv:
        case (program, *rest) if program in PYTHONS:
            return (python, *rest)
        case ("torchrun", *rest):
            return (python, *TORCHRUN, *rest)
    return argv
