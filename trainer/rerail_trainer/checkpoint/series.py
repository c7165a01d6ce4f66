"""The checkpoints of one run from start to end: claim the folder, resume, save, prune, release."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rerail_api.contract import ExitCode
from rerail_trainer.config import CheckpointConfig
from rerail_trainer.control import Control
from rerail_trainer.environment import JobIdentity, RankIdentity
from rerail_trainer.failures import BadConfig, TrainerExit

from . import layout, ownership, rounds
from .load import Loaded, Loader, Readers
from .probe import open_root, probe, sees
from .save import Observer, Outcome, Position, Retention, Saver, Training
from .state import TrainingState, device_of
from .storage import Storage, open_storage

Say = Callable[[str], None]
"""Tells people one line; only rank 0 has something to say."""


@dataclass(frozen=True)
class Start:
    """From where training begins: `loaded` is None for step 0.

    `spoilt`: the state then needs its first values again.
    """

    loaded: Loaded | None
    set_aside: tuple[str, ...] = ()
    spoilt: bool = False

    @property
    def step(self) -> int:
        return self.loaded.manifest.step if self.loaded else 0


class Series:
    """Holds the folder for this round. Every method is called by all ranks together.

    node: the ranks of this node, who share what they read.
    """

    def __init__(
        self, control: Control, storage: Storage, tenure: rounds.Tenure, identity: JobIdentity
    ) -> None:
        self._control, self._storage, self._tenure, self._identity = control, storage, tenure, identity
        self.node = Control(0, 1)
        self.say: Say = lambda text: None
        self._saver: Saver | None = None
        self._ended = threading.Event()
        self.committed_step = 0
        self.last_commit_time = 0.0

    def resume(self, config: CheckpointConfig, training: Training, state: TrainingState, seed: int) -> Start:
        """Restores the newest good step and fixes in the round's record where this round goes on.

        Raises NO_CHECKPOINT when the operator has seen a step committed and none can be read now.
        """
        readers = Readers(self._control, self.node, config.verify)
        loader = Loader(readers, self._storage, training, self.say)
        loaded = loader.load(state, seed) if config.resume == "auto" else None
        start = Start(loaded, tuple(loader.set_aside), loader.spoilt)
        self._refuse_lost_steps(config, start)
        self._control.first_rank_does(lambda: rounds.record_start(self._storage, self._tenure, start.step))
        if self._tenure.taken_over is not None and self._control.first:
            self.say(f"continued from job {self._tenure.taken_over.job}, step {start.step}")
        self.committed_step = start.step
        self.last_commit_time = loaded.manifest.time if loaded else 0.0
        saver = Saver(self._control, self._storage.root, self._tenure, training, device_of(state))
        saver.retention = Retention(config.keep, config.keep_every)
        saver.get_ready(state)
        self._saver = saver
        return start

    def observe_saves(self, observer: Observer) -> None:
        """Lets `observer` see every point of every save."""
        self._opened().observe(observer)

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._opened().under_way

    @property
    def stall_seconds(self) -> float:
        """How long training has waited here for saves since the process began."""
        return self._opened().stall_seconds

    def begin(self, position: Position, state: TrainingState) -> None:
        """Starts to save a step; training may go on, and `staged` says when the state may change."""
        self._opened().begin(position, state)

    def staged(self) -> None:
        """Comes before every change of the state: waits until what is being saved has been copied."""
        self._opened().staged()

    def own_part(self) -> tuple[bool, bool]:
        """(this rank's part of a save is not done yet, it has failed), to be agreed on with the others."""
        return self._opened().own()

    def advance(self, saving: bool, failed: bool) -> Outcome | None:
        """A step boundary: the agreed state of the save; its outcome if it has ended. An outcome that failed
        leaves everything as it was.
        """
        return self._noted(self._opened().advance(saving, failed))

    def wait(self) -> Outcome:
        """Waits until the save under way has ended."""
        outcome = self._noted(self._opened().wait())
        assert outcome is not None  # noqa: S101
        return outcome

    def finish_pruning(self) -> None:
        """Waits until older steps are removed, too."""
        self._tell_of_pruning(self._opened().pruned(wait=True))

    def _noted(self, outcome: Outcome | None) -> Outcome | None:
        self._tell_of_pruning(self._opened().pruned())
        if outcome is not None and outcome.step is not None and outcome.committed:
            self.committed_step, self.last_commit_time = outcome.step, outcome.time
        return outcome

    def _tell_of_pruning(self, problem: str) -> None:
        if problem:
            self.say(f"older steps could not be removed: {problem}")

    def close(self, code: ExitCode) -> None:
        """Writes into the owner's record how this run ended; never raises, and needs rank 0 alone."""
        self._ended.set()
        if self._saver is not None:
            self._saver.close()
        if self._control.first:
            state = ownership.FINISHED if code == ExitCode.DONE else ownership.STOPPED
            with suppress(OSError):
                if self._still_ours():
                    ownership.write_owner(self._storage, self._identity, self._tenure.author.round, state)

    def _opened(self) -> Saver:
        if self._saver is None:
            raise RuntimeError("resume comes before the first save")
        return self._saver

    def _still_ours(self) -> bool:
        return ownership.still_ours(self._storage, self._identity, self._tenure.author.round)

    def _refuse_lost_steps(self, config: CheckpointConfig, start: Start) -> None:
        least = self._identity.min_step
        if config.resume == "never" or start.step >= least:
            return
        if start.loaded is None:
            raise TrainerExit(
                ExitCode.NO_CHECKPOINT,
                f"step {least} was committed before, but {self._storage.root} holds none "
                "that can be read: "
                "is the right volume mounted? To begin again from step 0, set checkpoint.resume=never",
            )
        if self._control.first:
            self.say(
                f"step {least} was committed before, but {start.step} is the newest that can be read here"
            )

    def keep_alive(self) -> None:
        """Shows other jobs that the owner lives, until `close`."""
        while not self._ended.wait(ownership.BEAT_SECONDS):
            with suppress(OSError):
                if self._still_ours():
                    self._storage.beat(layout.OWNER)


def open_series(
    config: CheckpointConfig, control: Control, identity: JobIdentity, place: RankIdentity
) -> Series:
    """Probes and claims the folder for the round of `identity`; the first rank of each node checks that it
    sees the same one.

    Raises BadConfig for a folder that cannot be used or is another's, Superseded for a newer round.
    """
    storage = open_storage(config.dir)

    def claim() -> rounds.Tenure:
        open_root(storage.root)
        probe(storage)
        return rounds.begin(storage, identity, config.take_over, config.owner_lease_seconds)

    tenure = control.first_rank_does(claim)
    missing = [
        rank
        for rank, seen in enumerate(control.collect(place.local_rank > 0 or sees(storage, tenure.work)))
        if not seen
    ]
    if missing:
        raise BadConfig(
            f"{storage.root} is not one folder for all nodes: rank {missing[0]} does not see "
            "what rank 0 wrote; "
            "use a volume that all pods share (ReadWriteMany)"
        )
    series = Series(control, storage, tenure, identity)
    series.node = control.part_of(place.local_rank, place.local_world_size)
    if control.first:
        threading.Thread(target=series.keep_alive, name="owner", daemon=True).start()
        threading.Thread(target=rounds.sweep, args=(storage, identity.uid), name="sweep", daemon=True).start()
    return series
