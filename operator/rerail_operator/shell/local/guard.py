"""Outlives `rerail run` by a moment: whatever becomes of the runner, no process of its pods stays behind.

Waits for the end of its standard input: the runner's end of the pipe closes with the runner,
SIGKILL included. Then it ends every process that carries the run's mark. `python -m ...guard NAME VALUE`.
"""

import asyncio
import signal
import sys
from functools import partial

from rerail_operator.shell.local import processes


def main(arguments: list[str]) -> int:
    name, value = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    left = asyncio.run(processes.kill_all(partial(processes.marked, name, value)))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
