"""Gangs of real ranks for the tests: start, watch, signal, wait, and read back what they told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
_POLL_SECONDS = 0.02

SMALL = (
    "--model.layers=2", "--model.dim=32", "--model.heads=4", "--model.kv_heads=2", "--model.head_dim=8",
    "--model.ffn=48", "--model.seq_len=16", "--model.vocab=257", "--batch.tokens_per_step=256",
    "--batch.micro_batch=4", "--optim.lr=5e-3", "--optim.warmup_steps=2", "--train.steps=8",
    "--checkpoint.every_steps=2", "--checkpoint.mode=sync", "--metrics.every=100", "--parallel.device=cpu",
)  # fmt: skip
"""A model that makes a step in milliseconds: 16 sequences a step, 8 steps, a save after every second one.

Training waits for each save: at this pace it would be past the next ones while one is written, and leave them out.
"""

PYTHONPATH = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer"), str(ROOT)])


class Zygote:
    """The forking process; one for a whole test session."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**clean_environment(), "PYTHONPATH": PYTHONPATH},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def clean_environment() -> dict[str, str]:
    """Ours, without anything that a rank would take as its own: torch's compiler, used in this process, tells
    every later one in its environment where it keeps its kernels.
    """
    foreign = ("RERAIL_", "PET_", "TORCHELASTIC_", "TORCHINDUCTOR_", "TRITON_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith(foreign)
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Gang:
    """Running ranks. `folder` holds their output, progress and step lines."""

    zygote: Zygote
    folder: Path
    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def wait(self, deadline: float = DEADLINE_SECONDS) -> list[int]:
        """Exit codes in rank order (minus the signal); fails the test when they do not end in time."""
        end = time.monotonic() + deadline
        while len(self.codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes:
                    code = self.zygote.ask(do="poll", pid=pid)["code"]
                    if code is not None:
                        self.codes[rank] = code
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ranks {self.pids} did not end in {deadline} s:\n{self.output()}")
            time.sleep(_POLL_SECONDS)
        return [self.codes[rank] for rank in range(len(self.pids))]

    def end_of(self, rank: int) -> int:
        """Waits for one rank, then kills the others, as an agent would; its exit code."""
        end = time.monotonic() + DEADLINE_SECONDS
        while (code := self.zygote.ask(do="poll", pid=self.pids[rank])["code"]) is None:
            assert time.monotonic() < end, self.output()
            time.sleep(_POLL_SECONDS)
        self.codes[rank] = code
        self.kill()
        return code

    def kill(self) -> None:
        """SIGKILL to every rank that is left."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def writer(self, rank: int) -> int:
        """Process id of a rank's writer, which starts with the rank's saves."""
        found: list[int] = []

        def there() -> bool:
            found[:] = writers_of(self.pids[rank])
            return len(found) == 1

        self.until(there)
        return found[0]

    def metrics(self, port: int) -> str:
        """What rank 0 serves at this port."""
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                    return str(reply.read().decode())
            except OSError:
                assert time.monotonic() < end, self.output()
                time.sleep(_POLL_SECONDS)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What these ranks have told of one kind of event."""
        return [line for line in _lines(self.folder / "steps.jsonl") if line.get("event") == name]

    def until_step(self, step: int) -> None:
        """Returns once progress has told of `step`."""
        self.until(
            lambda: any(line.get("step", 0) >= step for line in self.progress() if line["phase"] == "train")
        )

    def until_phase(self, phase: str) -> None:
        """Returns once the last line of progress is of `phase`."""
        self.until(lambda: [line["phase"] for line in self.progress()][-1:] == [phase])

    def until_output(self, text: str) -> None:
        self.until(lambda: text in self.output())

    def until_frozen(self, rank: int) -> None:
        """Returns once a rank has been stopped by SIGSTOP."""
        stat = Path(f"/proc/{self.pids[rank]}/stat")
        self.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def until(self, holds: Any) -> None:
        end = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert time.monotonic() < end, self.output()
            time.sleep(_POLL_SECONDS)

    def output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("output-*")))

    def progress(self) -> list[dict[str, Any]]:
        """The lines of rank 0."""
        return [line for line in _lines(self.folder / "progress") if "phase" in line]

    def busy(self) -> list[dict[str, Any]]:
        """What each rank has told of its own share of the steps."""
        return [line for line in _lines(self.folder / "progress") if "busy_steps" in line]

    def declared(self) -> list[dict[str, Any]]:
        """What ranks declared before they did anything."""
        return [
            line
            for line in _lines(self.folder / "progress")
            if "phase" not in line and "busy_steps" not in line
        ]

    def losses(self) -> dict[int, float]:
        """Loss of every step that these ranks made, exactly as computed."""
        return self.readings("loss")

    def readings(self, name: str) -> dict[int, float]:
        """One number of every step that these ranks made, as their JSONL tells it."""
        return {line["step"]: line[name] for line in _lines(self.folder / "steps.jsonl") if "loss" in line}


def writers_of(rank: int) -> list[int]:
    """Living writer processes of a rank."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[1]) == rank and is_writer(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended
    return found


def is_writer(pid: int) -> bool:
    """Whether this process is a living writer."""
    try:
        return b"rerail_trainer.checkpoint.writer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@dataclass
class Yard:
    """Starts gangs that share one checkpoint folder."""

    zygote: Zygote
    folder: Path
    gangs: list[Gang] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self, *words: str, ranks: int = 1, env: dict[str, str] | None = None, **wishes: Any) -> Gang:
        """Starts `ranks` ranks. wishes: at={rank, point, step or save, signal, victim}; uid; missing=(ranks not started);
        inside=name of what tests.trainer.inside does in each rank before it trains; per_node=(ranks that take
        themselves for one node); env_of={rank: its own environment}; blind=(a rank to which the root of the checkpoint folder looks empty).
        """
        folder = self.folder / f"gang-{len(self.gangs)}"
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        port, at = free_port(), wishes.get("at")
        pids = []
        for rank in range(ranks):
            if rank in wishes.get("missing", ()):
                continue
            reply = self.zygote.ask(
                do="start",
                words=[
                    *SMALL,
                    f"--checkpoint.dir={self.checkpoints}",
                    f"--metrics.jsonl={folder}/steps.jsonl",
                    *words,
                ],
                output=str(folder / f"output-{rank}"),
                env={
                    **_rank_environment(rank, ranks, port, wishes.get("per_node", ranks)),
                    "RERAIL_PROGRESS": f"{folder}/progress",
                    **(env or {}),
                    **wishes.get("env_of", {}).get(rank, {}),
                },
                at=at if at and at.get("rank", 0) == rank else None,
                uid=wishes.get("uid"),
                blind=wishes.get("blind") == rank,
                inside=wishes.get("inside"),
            )
            pids.append(reply["pid"])
        gang = Gang(self.zygote, folder, pids)
        self.gangs.append(gang)
        return gang

    def run(self, *words: str, **wishes: Any) -> Gang:
        """Starts a gang that must end well."""
        gang = self.start(*words, **wishes)
        codes = gang.wait()
        assert set(codes) == {0}, f"{codes}\n{gang.output()}"
        return gang

    def committed(self) -> list[int]:
        """Steps whose manifest is there."""
        return sorted(int(path.parent.name[5:]) for path in self.checkpoints.glob("step-*/MANIFEST.json"))

    def close(self) -> None:
        for gang in self.gangs:
            gang.kill()


def _rank_environment(rank: int, ranks: int, port: int, per_node: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % per_node),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(per_node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
