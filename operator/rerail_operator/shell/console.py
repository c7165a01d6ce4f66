"""The one place from which the command line speaks: results to stdout, complaints to stderr."""

import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Console:
    """Two streams and nothing else; a reader that went away (`| head`) ends nothing."""

    out: TextIO
    err: TextIO

    def say(self, text: str = "") -> None:
        """One or more lines for the reader of the result."""
        _write(self.out, text)

    def complain(self, text: str) -> None:
        """One or more lines about what is wrong and what to do instead."""
        _write(self.err, text)

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches the output now."""
        return self.out.isatty()


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        return
    except UnicodeEncodeError:
        safe = text.encode(stream.encoding or "ascii", "replace").decode(stream.encoding or "ascii")
        stream.write(safe + "\n")


def standard() -> Console:
    """The console of this process."""
    return Console(sys.stdout, sys.stderr)
