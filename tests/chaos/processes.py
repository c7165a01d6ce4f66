"""Lives of `rerail run`: real operator, agents, ranks and writers on this machine, the real trainer on the CPU.

Blows of `--inject` fall at steps that the seed chooses; agents and writers are killed from outside, as the kernel
would. The losses are held against a run that nothing disturbed, digit by digit.
"""

import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerail_trainer.report.runs import RunLog, read_run
from tests.local.runs import Run, job
from tests.trainer.gang import SMALL

from .invariants import Account, Resumption, broken

STEPS = 60
SAVE_EVERY = 5
NODES = 2
WITHIN_SECONDS = 240.0
HANG_SECONDS = 6
INJECTED = ("kill:rank={}", "stop:node={}", "lose:node={}")
HANG = "hang:rank={}"
FROM_OUTSIDE = {"kill the agent of": "agent.pyz", "kill a writer of": "rerail_trainer.checkpoint.writer"}
FREE = "kill a writer of"
"""A lost writer costs a save, never a restart."""


@dataclass
class Life:
    """One run and what it was dealt."""

    seed: int
    dealt: list[str] = field(default_factory=list)
    account: Account | None = None
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """What does not hold."""
        return broken(self.account) if self.account is not None else ["the run has no report"]

    def __str__(self) -> str:
        return f"run {self.seed} ({', '.join(self.dealt)}; {self.seconds:.0f} s)"


def uninterrupted(folder: Path) -> dict[int, float]:
    """The loss of every step of a run that nothing disturbs."""
    run = _start(folder)
    try:
        assert run.finish(WITHIN_SECONDS) == 0, run.output
        return _losses(read_run(str(folder / "steps.jsonl")))
    finally:
        run.clean_up()


def live_as_processes(seed: int, folder: Path, reference: dict[int, float], hangs: bool = True) -> Life:
    """One life from its start to the last process. Raises AssertionError where the run has no end."""
    rng, began = random.Random(seed), time.monotonic()
    life = Life(seed)
    injected = rng.choice((*INJECTED, HANG) if hangs else INJECTED).format(rng.randrange(NODES))
    outside = rng.choice(tuple(FROM_OUTSIDE))
    first, second = sorted(rng.sample(range(10, 45), 2))
    second = max(second, first + 15)
    at_first, at_second = (injected, outside) if rng.random() < 0.5 else (outside, injected)
    steps = {at_first: first, at_second: second}
    run = _start(folder, "--inject", f"{injected},step={steps[injected]}")
    try:
        node_rank = rng.randrange(NODES)
        _kill_from_outside(run, folder, FROM_OUTSIDE[outside], node_rank, steps[outside])
        life.dealt = [f"{injected} at {steps[injected]}", f"{outside} node {node_rank} at {steps[outside]}"]
        run.process.wait(WITHIN_SECONDS)
        life.account = _account(run, folder, reference, restarts=1 + (outside != FREE))
    finally:
        run.clean_up()
    life.seconds = time.monotonic() - began
    return life


def _start(folder: Path, *options: str) -> Run:
    folder.mkdir(parents=True)
    words = [
        "python", "-m", "rerail_trainer", *SMALL, "--batch.tokens_per_step=8192", "--batch.micro_batch=16",
        f"--train.steps={STEPS}", f"--checkpoint.every_steps={SAVE_EVERY}", "--checkpoint.mode=process",
        "--metrics.every=1", f"--metrics.jsonl={folder}/steps.jsonl",
    ]  # fmt: skip
    policy = {"hangSeconds": HANG_SECONDS}
    return Run(
        job(folder, words, nodes=NODES, nproc=1, failurePolicy=policy, checkpoint={"graceSeconds": 20}),
        folder,
        *options,
    )


def _kill_from_outside(run: Run, folder: Path, what: str, node_rank: int, step: int) -> None:
    """SIGKILL to one process of a node rank, once the job has made the step."""
    deadline = time.monotonic() + WITHIN_SECONDS
    while run.process.poll() is None and time.monotonic() < deadline:
        if _made(folder) >= step:
            found = [pid for pid in run.members() if what in _command(pid)]
            if (
                len(found) >= NODES
            ):  # the gang is whole: a blow on one that comes back would not be told apart
                os.kill(sorted(found)[node_rank], signal.SIGKILL)
                return
        time.sleep(0.02)


def _made(folder: Path) -> int:
    """The newest step that the trainer has told of."""
    try:
        return read_run(str(folder / "steps.jsonl")).starts[-1].steps[-1]["step"]  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - nothing is written yet
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _account(run: Run, folder: Path, reference: dict[int, float], restarts: int) -> Account:
    report: dict[str, Any] = run.report
    told = read_run(str(folder / "steps.jsonl"))
    return Account(
        status=report,
        restarts=restarts,
        most_restarts=restarts,
        losses=[(line["step"], line["loss"]) for start in told.starts for line in start.steps],
        reference=reference,
        resumptions=list(_resumptions(told)),
        processes=run.members(),
    )


def _resumptions(told: RunLog) -> list[Resumption]:
    found, committed = [], 0
    for number, start in enumerate(told.starts, start=1):
        if number > 1:
            found.append(Resumption(number, start.at, committed))
        committed = max([committed, *(line["step"] for line in start.commits)])
    return found


def _losses(told: RunLog) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in told.lasting()}
