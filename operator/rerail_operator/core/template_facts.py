"""What a pod template says about itself: ranks per node, and whether checkpoints outlive the pod."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from rerail_api.spec import MAX_PROCS_PER_NODE, TrainingJobSpec
from rerail_api.template import accelerator_count, accelerators, trainer_container
from rerail_api.v1alpha1 import TrainingJob

from .world import World

_DIES_WITH_POD: Final = frozenset({"emptyDir", "ephemeral"})
_READ_ONLY: Final = frozenset({"configMap", "secret", "downwardAPI", "projected", "image"})


def num_proc(spec: TrainingJobSpec, template: Mapping[str, Any], accelerators: Iterable[str]) -> int | str:
    """Ranks per node; where `auto` cannot be resolved, the sentence that says what to write instead."""
    if isinstance(spec.num_proc_per_node, int):
        return spec.num_proc_per_node
    try:
        count = accelerator_count(dict(template), accelerators)
    except ValueError as error:
        return str(error)
    if count > MAX_PROCS_PER_NODE:
        return (
            f"the limits of the trainer container name {count} accelerators, more than the "
            f"{MAX_PROCS_PER_NODE} ranks a node may have: set spec.numProcPerNode to a number"
        )
    return count


def accelerators_of(world: World, job: TrainingJob) -> int:
    """Accelerators of the whole gang; of several kinds, the most numerous. 0: none, or not to be read."""
    try:
        found = accelerators(dict(job.spec.template), world.accelerators)
    except ValueError:
        return 0
    return job.spec.num_nodes * max(found.values(), default=0)


def checkpoint_is_durable(template: Mapping[str, Any], path: str) -> tuple[bool, str]:
    """Whether what is written below `path` outlives its pod, and a sentence that says why."""
    mount = _mount_behind(template, path)
    if mount is None:
        return False, (
            f"no volume is mounted at {path}: checkpoints die with their container; "
            f"mount a shared volume there or set spec.checkpoint.path"
        )
    name = str(mount.get("name"))
    kind = _volume_kind(template, name)
    if mount.get("readOnly") or kind in _READ_ONLY:
        return False, f"volume {name} behind {path} is read-only: no checkpoint can be written"
    if kind in _DIES_WITH_POD:
        return False, (
            f"volume {name} behind {path} is {kind}: checkpoints die with their pod; use a shared volume"
        )
    if kind == "hostPath":
        return True, (
            f"volume {name} behind {path} is a hostPath: checkpoints outlive their node only where "
            f"all nodes mount the same directory there"
        )
    return True, f"volume {name} ({kind}) behind {path} outlives the pods"


def _mount_behind(template: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The trainer's mount that holds `path`: the deepest one, as the kernel sees it."""
    mounts = trainer_container(dict(template)).get("volumeMounts") or ()
    behind = [m for m in mounts if PurePosixPath(path).is_relative_to(str(m.get("mountPath")))]
    return max(behind, key=lambda m: len(PurePosixPath(str(m["mountPath"])).parts), default=None)


def _volume_kind(template: Mapping[str, Any], name: str) -> str:
    for volume in template["spec"].get("volumes") or ():
        if volume.get("name") == name:
            # A volume of no kind is an emptyDir, says the API.
            return next((key for key in volume if key != "name"), "emptyDir")
    return "unknown"
