"""Everything in a checkpoint folder that is or was a step, for people. Changes nothing; torch-free."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from . import layout
from .committed import list_steps
from .manifest import Manifest
from .storage import Storage
from .tensorfile import Written

_SET_ASIDE = re.compile(r"corrupt-(step-\d{8,})\.")
_UNDER_WAY = re.compile(r"(step-\d{8,})\.\d+")


class State(Enum):
    """What a step counts for."""

    COMMITTED = "committed"
    OUTDATED = "outdated"  # a later round went on from an earlier step
    DAMAGED = "damaged"  # the next load will set it aside
    CORRUPT = "corrupt"  # a load has set it aside
    UNCOMMITTED = "under way"  # a save that goes on, or that a crash left


@dataclass(frozen=True)
class Entry:
    """A step, or what bears its name; what only a manifest tells is empty or 0 without one."""

    step: int
    state: State
    folder: str
    time: float = 0.0
    bytes: int = 0
    ranks: int = 0
    layout: str = ""
    job: str = ""
    uid: str = ""
    round: int = 0
    note: str = ""
    files: tuple[Written, ...] = ()


def take_stock(storage: Storage) -> list[Entry]:
    """All entries, newest step first. Raises TrainerExit for a manifest of a form that is not known."""
    listing = list_steps(storage)
    entries = [_entry(manifest, State.COMMITTED) for manifest in listing.steps]
    entries += [_entry(manifest, State.OUTDATED) for manifest in listing.outdated]
    for folder, why in listing.damaged:
        entries.append(Entry(layout.step_of(folder) or 0, State.DAMAGED, folder, note=why))
    entries += _others(storage)
    return sorted(entries, key=lambda entry: (-entry.step, entry.state.value))


def _entry(manifest: Manifest, state: State) -> Entry:
    author = manifest.author
    return Entry(
        step=manifest.step,
        state=state,
        folder=layout.step_folder(manifest.step),
        time=manifest.time,
        bytes=sum(written.size for written in manifest.files),
        ranks=manifest.world_size,
        layout=manifest.layout,
        job=author.job,
        uid=author.uid,
        round=author.round,
        files=manifest.files,
    )


def _others(storage: Storage) -> Iterator[Entry]:
    for name in storage.names(""):
        match = _SET_ASIDE.match(name)
        if match:
            yield Entry(layout.step_of(match.group(1)) or 0, State.CORRUPT, name)
    for work in storage.names(layout.WORK):
        for name in storage.names(f"{layout.WORK}/{work}"):
            match = _UNDER_WAY.fullmatch(name)
            if match:
                folder = f"{layout.WORK}/{work}/{name}"
                yield Entry(layout.step_of(match.group(1)) or 0, State.UNCOMMITTED, folder)
