"""Ways in which a rank ends on purpose: an exit code of the contract and one sentence for a person."""

from rerail_api.contract import ExitCode


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
