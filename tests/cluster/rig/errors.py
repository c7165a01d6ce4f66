"""What can go wrong in the rig, told apart by type."""


class RigError(RuntimeError):
    """The rig could not do what was asked; the message says why and where the log is."""


class Missing(RigError):
    """This machine lacks something; the message names it and the command that helps."""


class CommandFailed(RigError):
    """A command ended with a failure. `stderr` and `stdout` hold what it said."""

    def __init__(self, argv: list[str], code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr
        said = "\n".join(part for part in (stderr.strip(), stdout.strip()[-2000:]) if part)
        super().__init__(f"`{' '.join(argv[:8])}` ended with {code}: {said}")
