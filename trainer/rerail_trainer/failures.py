"""Ways in which a rank ends on purpose: an exit code of the contract and one sentence for a person."""

import json
import os
import sys
import time
import traceback

from rerail_api.contract import Env, ExitCode


class TrainerExit(Exception):
    """Ends this rank with `code`; `message` is the one line that the user reads."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadConfig(TrainerExit):
    """The configuration or the environment can never work as it stands."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.BAD_CONFIG, message)


class Superseded(TrainerExit):
    """A newer round of the same job owns the checkpoint folder: this process is a left-over and must go."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.RETRY_IN_PLACE, message)


def tell(message: str, code: int) -> None:
    """One line on standard error, and the same in torchrun's error file where one is wanted."""
    rank = os.environ.get(Env.RANK, "")
    who = f"rank {rank}: " if rank else ""  # a command that a person has typed has no rank
    sys.stderr.write(f"rerail_trainer: {who}{message} (exit {code})\n")
    path = os.environ.get(Env.ERROR_FILE, "")
    if path:
        extra = {"py_callstack": traceback.format_exc(), "timestamp": str(int(time.time()))}
        record = {"message": {"message": message, "errorCode": code, "extraInfo": extra}}
        try:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(record, file)
        except OSError as error:
            sys.stderr.write(f"rerail_trainer: {path} cannot be written: {error.strerror}\n")
