"""Which round may write: the fence that makes a left-over process of an older round harmless.

Every save happens in .work/<round>.<random>/, which only this module makes and nobody makes again. A new
round renames the older ones aside *before* it lists what is committed, so an older round's rename comes
either before that listing, and counts, or fails because its source is gone.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from rerail_trainer.environment import LOCAL_JOB, JobIdentity
from rerail_trainer.failures import Superseded

from . import layout
from .manifest import Author, seal, unseal
from .ownership import RUNNING, Owner, refuse_unless_free, write_owner
from .storage import Storage
from .tensorfile import Damaged

_ASIDE = "aside-"


@dataclass(frozen=True)
class RoundRecord:
    """One round that began in this folder. `sequence` orders all rounds of all jobs;
    `resumed_from` is a step.
    """

    sequence: int
    job: str
    uid: str
    round: int
    resumed_from: int
    time: float


@dataclass(frozen=True)
class Tenure:
    """The right to write here: until a newer round takes it."""

    author: Author
    work: str
    previous: Owner | None

    @property
    def taken_over(self) -> Owner | None:
        """The other job whose steps this one continues."""
        other = self.previous is not None and self.previous.uid != self.author.uid
        return self.previous if other else None


def begin(storage: Storage, identity: JobIdentity, take_over: str, lease_seconds: float) -> Tenure:
    """Claims the folder for this round and shuts all older rounds out; one process of the gang calls it,
    once.

    Raises BadConfig for a foreign owner, Superseded when a newer round is already there.
    """
    previous = refuse_unless_free(storage, identity, take_over, lease_seconds)
    records = read_records(storage)
    round_ = identity.round
    if round_ is None:
        known = [record.round for record in records if record.uid == identity.uid]
        known += [previous.round] if previous and previous.uid == identity.uid else []
        round_ = max(known, default=0) + 1
    write_owner(storage, identity, round_, RUNNING)
    for folder in (layout.WORK, layout.ROUNDS):
        with suppress(FileExistsError):
            storage.make_folder(folder)
    sequence = max((record.sequence for record in records), default=0) + 1
    author = Author(identity.job, identity.uid, round_, sequence)
    tenure = Tenure(author, layout.work_folder(round_), previous)
    _fence(storage, tenure)
    return tenure


def record_start(storage: Storage, tenure: Tenure, resumed_from: int) -> None:
    """Fixes the step from which this round goes on; what older rounds wrote beyond it no longer counts."""
    author = tenure.author
    record = RoundRecord(author.sequence, author.job, author.uid, author.round, resumed_from, time.time())
    storage.replace(layout.round_record(author.sequence), seal(asdict(record)))


def read_records(storage: Storage) -> list[RoundRecord]:
    """All rounds that began here, oldest first; records that cannot be trusted are left out."""
    records = []
    for name in storage.names(layout.ROUNDS):
        if layout.sequence_of(name) is None:
            continue
        path = f"{layout.ROUNDS}/{name}"
        with suppress(Damaged, FileNotFoundError, TypeError):
            records.append(RoundRecord(**unseal(path, storage.read(path))))
    return sorted(records, key=lambda record: record.sequence)


def outdated(author: Author, step: int, records: list[RoundRecord]) -> bool:
    """Whether a later round went on from an earlier step than this:
    then the training never passed through it.
    """
    return any(record.sequence > author.sequence and record.resumed_from < step for record in records)


def sweep(storage: Storage, uid: str) -> None:
    """Removes work that older rounds of this job left behind; what another job wrote stays."""
    for name in storage.names(layout.WORK):
        path = f"{layout.WORK}/{name}"
        if name.startswith(_ASIDE) and _work_uid(storage, path) == uid:
            storage.remove_folder(path)


def _fence(storage: Storage, tenure: Tenure) -> None:
    author = tenure.author
    for name in storage.names(layout.WORK):
        if name.startswith(_ASIDE):
            continue
        path = f"{layout.WORK}/{name}"
        newer = (layout.round_of(name) or 0) > author.round
        if newer and _work_uid(storage, path) == author.uid != LOCAL_JOB:
            raise Superseded(f"round {author.round} of job {author.job} is over: round {name} has begun")
        # The same round once more is a restart inside it: its former processes are shut out just as well.
        with suppress(FileNotFoundError):
            storage.rename(path, f"{layout.WORK}/{layout.unique(_ASIDE + name)}")
    storage.make_folder(tenure.work)
    storage.write(f"{tenure.work}/{layout.WORK_OWNER}", [seal(asdict(author))])


def _work_uid(storage: Storage, path: str) -> str:
    try:
        body = unseal(path, storage.read(f"{path}/{layout.WORK_OWNER}"))
    except (OSError, Damaged):
        return ""
    return str(body.get("uid", ""))
