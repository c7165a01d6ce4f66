"""The one place of the rig that speaks to people: progress on stderr, results on stdout."""

import os
import sys


def say(message: str) -> None:
    """Tell a person what is going on; never part of a result."""
    sys.stderr.write(f"rig: {message}\n")
    sys.stderr.flush()


def hint(message: str) -> None:
    """Like `say`, but silent where RERAIL_RIG_QUIET is set (tests that start many rigs)."""
    if not os.environ.get("RERAIL_RIG_QUIET"):
        say(message)


def result(line: str) -> None:
    """One line for a program or a shell to read."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
