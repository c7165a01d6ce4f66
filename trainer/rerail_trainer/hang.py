"""What a rank that hangs leaves behind, and what the ranks' reports say together."""

import faulthandler
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .environment import LOCAL_JOB, JobIdentity, RankIdentity

FOLDER = ".hang"
"""Below the checkpoint folder; then one folder per round."""
_PACKAGE = str(Path(__file__).parent)
_GATHER_SECONDS = 3.0
"""How long a rank waits for the reports of the others: their time runs out at about the same moment."""
_RECENT_SECONDS = 60.0
_POLL_SECONDS = 0.1
_TOLD = 3
"""The oldest collectives are the cause, the others queue behind them."""
_STANDS, _WAITS = "stands in: ", "waits in: "


@dataclass(frozen=True)
class Hang:
    """What took too long; `step` is the last finished one."""

    phase: str
    step: int | None
    seconds: float

    def __str__(self) -> str:
        after = "before the first step" if self.step is None else f"after step {self.step}"
        return f"nothing finished for {self.seconds:.0f} s in phase {self.phase}, {after}"


@dataclass(frozen=True)
class HangReport:
    """Where the reports of a round go; without a folder there is standard error only."""

    rank: int = 0
    world_size: int = 1
    folder: Path | None = None

    def tell(self) -> None:
        """Says on standard error where this rank stands and in which collectives it waits."""
        self._say([f"stands in {standing()}"])
        recorder = _flight_recorder()
        waits = [] if recorder is None else under_way(recorder.entries())
        self._say([f"waits in {wait}" for wait in waits[:_TOLD]] or ["waits in no collective"])

    def write(self, hang: Hang) -> None:
        """Writes this rank's report, waits for the others', and says on standard error what they say."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _name(self.rank)
            waits = self._write(path, hang)
            self._say([f"waits in {wait}" for wait in waits[:_TOLD]] + [f"report in {path}"])
            ranks = self._gather(path.stat().st_mtime)
            if self.rank == min(ranks):
                places = {rank: _place_in(self.folder / _name(rank)) for rank in ranks}
                lines = "".join(f"  {line}\n" for line in summary(places, self.world_size))
                sys.stderr.write(f"rerail_trainer: where the ranks stand:\n{lines}")
        except OSError as error:
            sys.stderr.write(f"rerail_trainer: no report in {self.folder}: {error.strerror}\n")

    def _say(self, lines: list[str]) -> None:
        sys.stderr.write("".join(f"rerail_trainer: rank {self.rank}: {line}\n" for line in lines))
        sys.stderr.flush()

    def _write(self, path: Path, hang: Hang) -> list[str]:
        """The collectives that this rank waits in, oldest first."""
        waits = self._dump_collectives(path.parent)
        unfinished = path.with_suffix(".part")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(f"rank {self.rank} of {self.world_size}: {hang}\n")
            file.write(f"{_STANDS}{standing()}\n")
            file.writelines(f"{_WAITS}{wait}\n" for wait in waits)
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
        unfinished.rename(path)
        return waits

    def _gather(self, own: float) -> set[int]:
        """The ranks that have reported, as soon as all have, or when time is over."""
        assert self.folder is not None  # noqa: S101
        end = time.monotonic() + _GATHER_SECONDS
        names = {_name(rank): rank for rank in range(self.world_size)}
        found: set[int] = set()
        while len(found) < self.world_size and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            for entry in os.scandir(self.folder):
                rank = names.get(entry.name)
                if rank is None or rank in found:
                    continue
                # A report of an earlier hang in the same folder is none of this one.
                if abs(entry.stat().st_mtime - own) < _RECENT_SECONDS:
                    found.add(rank)
        return found | {self.rank}

    def _dump_collectives(self, folder: Path) -> list[str]:
        """Keeps torch's flight recorder, in the form that `torch.distributed.flight_recorder` reads; the
        collectives that this rank waits in.
        """
        recorder = _flight_recorder()
        if recorder is None:
            return []
        (folder / f"nccl_trace_rank_{self.rank}").write_bytes(recorder.everything())
        return under_way(recorder.entries())


def report_of(checkpoint_dir: str, rank: RankIdentity, job: JobIdentity) -> HangReport:
    """Beside the checkpoints, where those lie in a folder."""
    folder = None
    if checkpoint_dir and "://" not in checkpoint_dir:
        folder = Path(checkpoint_dir) / FOLDER / (LOCAL_JOB if job.round is None else str(job.round))
    return HangReport(rank.rank, rank.world_size, folder)


@dataclass(frozen=True)
class Recorder:
    """Torch's flight recorder for one backend."""

    dump: Callable[[], bytes]
    dump_json: Callable[[], bytes]

    def everything(self) -> bytes:
        """As torch pickles it, with the stacks of all that was begun; to name them may take seconds."""
        return bytes(self.dump())

    def entries(self) -> list[dict[str, Any]]:
        """Without stacks; at once."""
        found: list[dict[str, Any]] = json.loads(self.dump_json()).get("entries", [])
        return found


def _flight_recorder() -> Recorder | None:
    """None where this torch records nothing."""
    # Only asked, never imported: before torch is there nothing was recorded.
    native = getattr(sys.modules.get("torch._C"), "_distributed_c10d", None)
    distributed = sys.modules.get("torch.distributed")
    if native is None or distributed is None or not distributed.is_initialized():
        return None
    kind = "nccl" if distributed.get_backend() == "nccl" else "fr"
    raw = getattr(native, f"_dump_{kind}_trace", None)
    readable = getattr(native, f"_dump_{kind}_trace_json", None)
    return None if raw is None or readable is None else Recorder(raw, readable)


def under_way(entries: list[dict[str, Any]]) -> list[str]:
    """The collectives that were begun and never ended, oldest first, out of a flight recorder's entries."""
    waiting = [entry for entry in entries if not entry.get("retired") and entry.get("state") != "completed"]
    return [
        f"{entry['profiling_name']} number {entry['collective_seq_id']} of group "
        f"{entry['process_group'][0]}, {entry['input_sizes']} {'/'.join(map(str, entry['input_dtypes']))}"
        for entry in waiting
    ]


def standing() -> str:
    """Where the main thread is: the innermost function of this package, and the innermost of all."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost, own = frame, frame
    while own is not None and not own.f_code.co_filename.startswith(_PACKAGE):
        own = own.f_back
    if innermost is None:
        return "nowhere: the main thread has ended"
    return _spoken(innermost) if own in (None, innermost) else f"{_spoken(own)} > {_spoken(innermost)}"


def _spoken(frame: FrameType | None) -> str:
    assert frame is not None  # noqa: S101
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"


def _name(rank: int) -> str:
    return f"rank-{rank:05d}.txt"


def _place_in(path: Path) -> str:
    """The place that a report names."""
    with path.open(encoding="utf-8") as file:
        return [next(file), next(file)][1].removeprefix(_STANDS).rstrip()


def summary(reports: dict[int, str], world_size: int) -> list[str]:
    """One line per place, the rarest first: where one rank stands apart, there is the cause."""
    places: dict[str, list[int]] = defaultdict(list)
    for rank in range(world_size):
        places[reports.get(rank, "no report: stopped, gone, or still at work")].append(rank)
    ordered = sorted(places.items(), key=lambda item: len(item[1]))
    return [f"{spans(ranks)}: {place}" for place, ranks in ordered]


def spans(ranks: list[int]) -> str:
    """Sorted ranks as people write them: "rank 3", "ranks 0-2, 7"."""
    pieces: list[list[int]] = []
    for rank in ranks:
        if pieces and rank == pieces[-1][-1] + 1:
            pieces[-1].append(rank)
        else:
            pieces.append([rank])
    text = ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
