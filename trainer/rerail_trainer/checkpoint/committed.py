"""What is committed in a checkpoint folder: list, set aside, commit, prune.

One process of the gang at a time.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rerail_trainer.failures import Superseded

from . import layout
from .manifest import Manifest, decode
from .rounds import Tenure, outdated, read_records
from .storage import Storage
from .tensorfile import Damaged


@dataclass(frozen=True)
class Listing:
    """Manifests that count, newest first; folders whose manifest is damaged;
    manifests that no longer count.
    """

    steps: tuple[Manifest, ...]
    damaged: tuple[tuple[str, str], ...]
    outdated: tuple[Manifest, ...]


def list_steps(storage: Storage) -> Listing:
    """Reads every manifest. A step without one, or with a file missing or of another size,
    is not committed.
    """
    records = read_records(storage)
    steps: list[Manifest] = []
    beyond: list[Manifest] = []
    damaged: list[tuple[str, str]] = []
    for name in reversed(storage.names("")):
        if layout.step_of(name) is None:
            continue
        try:
            manifest = _read(storage, name)
        except FileNotFoundError:
            continue  # pruning removes the manifest first: this is the rest
        except Damaged as error:
            damaged.append((name, str(error)))
            continue
        (beyond if outdated(manifest.author, manifest.step, records) else steps).append(manifest)
    steps.sort(key=lambda manifest: manifest.step, reverse=True)
    return Listing(tuple(steps), tuple(damaged), tuple(beyond))


def set_aside(storage: Storage, folder: str) -> str:
    """Renames a damaged step so that it never counts again and a person can look at it; its new name."""
    target = layout.unique(f"corrupt-{folder}")
    storage.rename(folder, target)
    return target


def commit(storage: Storage, tenure: Tenure, work: str, manifest: Manifest) -> None:
    """Makes the finished save `work` the committed step.

    Raises Superseded when a newer round has taken over.
    """
    target = layout.step_folder(manifest.step)
    try:
        _clear(storage, tenure, target)
        storage.rename(work, target)
    except FileNotFoundError as error:
        raise superseded(tenure, manifest.step) from error


def superseded(tenure: Tenure, step: int) -> Superseded:
    author = tenure.author
    return Superseded(
        f"step {step} is not saved: round {author.round} of job {author.job} is over, "
        f"a newer one has shut {tenure.work}"
    )


def prune(
    storage: Storage, tenure: Tenure, keep: int, keep_every: int, taken_out: Callable[[], None] = lambda: None
) -> list[int]:
    """Removes this job's older steps, and those that no longer count because a later round went on from an
    earlier one; the steps removed. Other jobs' steps are left alone.

    taken_out: called for each step between the moment when it no longer counts and its removal.
    """
    listing = list_steps(storage)
    own = [manifest for manifest in listing.steps if manifest.author.uid == tenure.author.uid]
    going = [manifest for manifest in listing.outdated if manifest.author.uid == tenure.author.uid]
    going += [m for m in own[keep:] if not (keep_every and m.step % keep_every == 0)]
    removed = []
    for manifest in going:
        taken = _take_out(storage, tenure, layout.step_folder(manifest.step))
        taken_out()
        _delete(storage, taken)
        removed.append(manifest.step)
    _prune_records(storage, listing)
    return removed


def _prune_records(storage: Storage, listing: Listing) -> None:
    """A record speaks about manifests of earlier rounds; without any it is only needed to count on from."""
    oldest = min((m.author.sequence for m in (*listing.steps, *listing.outdated)), default=0)
    for record in read_records(storage)[:-1]:
        if record.sequence <= oldest:
            storage.remove(layout.round_record(record.sequence))


def _clear(storage: Storage, tenure: Tenure, target: str) -> None:
    """Takes away what already bears the name of the step: a rest, or a step that no longer counts."""
    if target not in storage.names(""):
        return
    author = None
    with suppress(FileNotFoundError, Damaged):
        author = _read(storage, target).author
    if author is not None and author.sequence > tenure.author.sequence:
        raise FileNotFoundError(f"{target} was written by a newer round")
    taken = _take_out(storage, tenure, target)
    if author is not None and author.uid != tenure.author.uid:
        storage.rename(taken, layout.unique(f"outdated-{target}"))
        return
    _delete(storage, taken)


def _take_out(storage: Storage, tenure: Tenure, folder: str) -> str:
    """The commit in reverse: one rename into our own work folder,
    which fails when a newer round has begun.
    """
    taken = f"{tenure.work}/{layout.unique('pruned-' + folder)}"
    storage.rename(folder, taken)
    return taken


def _delete(storage: Storage, taken: str) -> None:
    # The manifest goes first, so that what a crash leaves is no checkpoint wherever it may be moved.
    storage.remove(f"{taken}/{layout.MANIFEST}")
    storage.remove_folder(taken)


def _read(storage: Storage, folder: str) -> Manifest:
    path = f"{folder}/{layout.MANIFEST}"
    manifest = decode(path, storage.read(path))
    if layout.step_folder(manifest.step) != folder:
        raise Damaged(path, f"it speaks of step {manifest.step}")
    for written in manifest.files:
        try:
            size = storage.size(f"{folder}/{written.name}")
        except FileNotFoundError as error:
            raise Damaged(f"{folder}/{written.name}", "it is missing") from error
        if size != written.size:
            raise Damaged(f"{folder}/{written.name}", f"it has {size} bytes instead of {written.size}")
    return manifest
