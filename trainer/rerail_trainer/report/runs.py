"""What JSONL files of runs say: starts, steps, and what happened between them. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerail_trainer.failures import BadConfig

from .jsonl import parsed

Line = dict[str, Any]


@dataclass
class Start:
    """One life of the process: from its start, or its resumption, to its end or the next start."""

    at: int = 0
    """Steps that were finished when it began."""
    resumed: bool = False
    steps: list[Line] = field(default_factory=list)
    commits: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)
    stop: Line | None = None


@dataclass
class RunLog:
    """All that one file tells, in the order in which it happened."""

    name: str
    starts: list[Start] = field(default_factory=list)

    @property
    def lost_steps(self) -> int:
        """Steps that were made more than once, counted every time but the first."""
        seen: set[int] = set()
        again = 0
        for line in (line for start in self.starts for line in start.steps):
            again += line["step"] in seen
            seen.add(line["step"])
        return again

    def replaced(self) -> list[Line]:
        """Steps that a later start made again: what they had become was lost."""
        lost: list[Line] = []
        for index, start in enumerate(self.starts):
            later = [other.at for other in self.starts[index + 1 :]]
            if later:
                lost += [line for line in start.steps if line["step"] > min(later)]
        return lost

    def lasting(self) -> list[Line]:
        """Every step as it went into the weights: the last time it was made."""
        last = {line["step"]: line for start in self.starts for line in start.steps}
        return [last[step] for step in sorted(last)]


def read_runs(paths: Sequence[str]) -> list[RunLog]:
    """Named by their files, and where two are of one name by their folders too."""
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run.name) > 1:
            run.name = str(Path(path).with_suffix(""))
    return runs


def read_run(path: str) -> RunLog:
    """Raises BadConfig for a file that cannot be read or holds no step."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise BadConfig(f"plot: {path}: {error.strerror}") from error
    run = RunLog(Path(path).stem)
    for line in map(parsed, lines):
        _take(run, line)
    run.starts = [start for start in run.starts if start.steps]
    if not run.starts:
        raise BadConfig(f"plot: {path} holds no step; give a file that --metrics.jsonl wrote")
    return run


def _take(run: RunLog, line: Line) -> None:
    event = line.get("event", "step" if "loss" in line and "step" in line else "")
    if event == "start" or not run.starts:
        run.starts.append(Start())
    start = run.starts[-1]
    if event == "start":
        start.at = line["step"]
    elif event == "resume":
        start.resumed = True
    elif event == "step":
        if start.steps and line["step"] <= start.steps[-1]["step"]:
            # A file without start events: steps that begin anew are a start.
            run.starts.append(Start(line["step"] - 1, resumed=True))
        run.starts[-1].steps.append(line)
    elif event == "commit":
        start.commits.append(line)
    elif event == "eval":
        start.evaluations.append(line)
    elif event == "stop":
        start.stop = line
