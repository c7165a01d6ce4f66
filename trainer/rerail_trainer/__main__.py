"""Entry of a rank: parse, listen for signals, train, and end with a code of the contract."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from rerail_api.contract import Env, ExitCode, ProgressPhase

from . import commands
from .advice import Advice
from .compile_cache import keep_compiled
from .config import Config
from .configure import nearest, read_command_line, usage
from .environment import job_identity, rank_identity
from .failures import BadConfig, TrainerExit, tell
from .hang import report_of
from .report.progress import ProgressLog, declare_contract
from .stop import StopRequest
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .checkpoint.save import Observer

INTERRUPTED = 130
"""As shells count a SIGINT."""
UNEXPECTED = 1
"""Code for what nobody foresaw, among it a peer that vanished: judged by cause, as no table can know it."""


def main(words: Sequence[str], observer: "Observer | None" = None) -> int:
    """Runs a command, by default one rank of a training; the exit code. Failures are told as one line,
    and a traceback where it was unexpected.
    """
    declare_contract(os.environ.get(Env.PROGRESS, ""))
    try:
        name, rest = commands.split(words)
        if name == commands.DEFAULT:
            return int(_train(rest, observer))
        if name not in commands.COMMANDS:
            raise BadConfig(
                f"unknown command {name!r}{nearest(name, [commands.DEFAULT, *commands.COMMANDS])}"
            )
        return commands.run(name, rest)
    except TrainerExit as refusal:
        tell(refusal.message, int(refusal.code))
        return int(refusal.code)
    except KeyboardInterrupt:  # of a command that has nothing to bring to an end; `train` and `prepare` have
        sys.stderr.write("rerail_trainer: interrupted\n")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place that can turn it into a line and a code
        first_line = (str(error).strip() or "no message").splitlines()[0]
        tell(f"{type(error).__name__}: {first_line}", UNEXPECTED)
        traceback.print_exc()
        return UNEXPECTED


def _train(words: Sequence[str], observer: "Observer | None") -> ExitCode:
    line = read_command_line(words)
    config = _with_environment(line.config)
    if line.show_usage or line.show_config:
        sys.stdout.write((usage() if line.show_usage else json.dumps(asdict(config), indent=1)) + "\n")
        return ExitCode.DONE
    rank, job = rank_identity(os.environ), job_identity(os.environ)
    stop = StopRequest(config.checkpoint.grace_seconds)
    stop.listen()
    lines = ProgressLog(os.environ.get(Env.PROGRESS, ""))
    progress = lines if rank.rank == 0 else ProgressLog("")
    # Before torch is imported, which takes seconds: whoever watches sees that this rank lives. No step yet:
    # where it goes on from, the checkpoint will tell.
    progress.write(ProgressPhase.INIT, total_steps=config.train.steps)
    report = report_of(config.checkpoint.dir, rank, job)
    stop.answer(signal.SIGUSR2, report.tell)
    watchdog = Watchdog(config.watchdog, report)
    watchdog.start()
    try:
        keep_compiled(config, rank.local_world_size, os.environ)
        from .startup import Circumstances, run

        circumstances = Circumstances(rank, job, progress, lines, stop, watchdog, Advice(os.environ))
        return run(config, circumstances, observer)
    finally:
        watchdog.close()


def _with_environment(config: Config) -> Config:
    """Fills in what the flags left open and the operator says in the environment."""
    checkpoint, env = config.checkpoint, os.environ
    grace = env.get(Env.GRACE_SECONDS, "")
    if not checkpoint.dir:
        checkpoint = replace(checkpoint, dir=env.get(Env.CHECKPOINT_DIR, ""))
    if not checkpoint.grace_seconds and grace.isdecimal():
        checkpoint = replace(checkpoint, grace_seconds=int(grace))
    if env.get(Env.RESUME) == "Never":
        checkpoint = replace(checkpoint, resume="never")
    return replace(config, checkpoint=checkpoint)


def leave(code: int) -> None:
    """Ends the process without waiting for threads of a process group whose peers may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
