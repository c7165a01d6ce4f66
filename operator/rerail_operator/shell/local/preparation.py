"""Everything that can be wrong with a run before it starts, found before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerail_operator.core.pod_resources import pod_request
from rerail_operator.core.quantities import format_quantity
from rerail_operator.core.template_facts import num_proc
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.local import processes
from rerail_operator.shell.local.inject import BadFault, Fault, FaultKind, Gang, parse_fault
from rerail_operator.shell.local.nodestatus import fresh_node
from rerail_operator.shell.manifest import BadManifest, Manifest, read_manifest

ROOM_FOR_PODS = 8
ANY_RANKS = 64
MOST_PODS = 96


class BadRun(ValueError):
    """Bad input; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says."""

    manifest: Path
    inject: Sequence[str] = ()
    report: Path | None = None
    workdir: Path | None = None
    keep: bool = False
    snapshot: Path | None = None
    port: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can start."""

    options: RunOptions
    manifest: Manifest
    gang: Gang
    faults: tuple[Fault, ...]

    @property
    def every_pod(self) -> Gang:
        """The gang and its spares."""
        return Gang(self.gang.num_nodes + self.manifest.job.spec.spares, self.gang.nproc)

    @property
    def num_nodes(self) -> int:
        """A node per pod and spare, and one more for each that is to vanish."""
        return self.every_pod.num_nodes + sum(fault.kind is FaultKind.LOSE for fault in self.faults)


def prepare(options: RunOptions, accelerators: Sequence[str]) -> Prepared:
    """Read and check all that the user gave. Raises `BadRun`."""
    if not processes.supported():
        raise BadRun("this machine has no /proc; `rerail run` needs Linux (elsewhere: a container or VM)")
    try:
        manifest = read_manifest(options.manifest)
    except BadManifest as error:
        raise BadRun(str(error)) from None
    spec = manifest.job.spec
    if spec.suspend:
        raise BadRun(f"{manifest.path}: spec.suspend is true, so nothing would run; write false")
    nproc = num_proc(spec, spec.template, accelerators)
    if isinstance(nproc, str):
        raise BadRun(f"{manifest.path}: {nproc}")
    gang = Gang(spec.num_nodes, nproc)
    if gang.world_size > ANY_RANKS:
        raise BadRun(
            f"{manifest.path}: {gang.num_nodes} nodes x {nproc} ranks are {gang.world_size} processes; "
            f"this machine is asked for at most {ANY_RANKS}: lower numNodes or numProcPerNode"
        )
    if spec.num_nodes + spec.spares > MOST_PODS:
        raise BadRun(
            f"{manifest.path}: {spec.num_nodes} nodes and {spec.spares} spares; this machine is asked for at "
            f"most {MOST_PODS} pods: lower spares or numNodes"
        )
    _writable("--report", options.report)
    _writable("--snapshot", options.snapshot)
    return Prepared(options, manifest, gang, _faults(options.inject, gang))


def _faults(texts: Sequence[str], gang: Gang) -> tuple[Fault, ...]:
    try:
        return tuple(parse_fault(text, gang) for text in texts)
    except BadFault as error:
        raise BadRun(str(error)) from None


def _writable(word: str, path: Path | None) -> None:
    """A run of hours must not end with a file that cannot be written."""
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8"):
            return
    except OSError as error:
        raise BadRun(f"{word} {path}: cannot be written: {error.strerror or error}") from None


def node_objects(prepared: Prepared) -> list[Object]:
    """Nodes that are only names, each with room for whatever the job's pods ask for."""
    request = pod_request(prepared.manifest.job.spec.template)
    room = {name: format_quantity(amount * ROOM_FOR_PODS) for name, amount in request.items()}
    room |= {"pods": "110"}
    return [fresh_node(f"local-{index}", room) for index in range(prepared.num_nodes)]
