"""Entry of the agent. Any Python must be able to read this file, so that an old one gets a clear answer."""

import os
import sys

if sys.version_info < (3, 9):  # noqa: UP036 - the image's Python is the user's choice, not ours
    sys.stderr.write(
        "[rerail] this image has Python %d.%d; the Rerail agent needs Python 3.9 or newer as `python3`: "  # noqa: UP031
        "install one in the image\n" % sys.version_info[:2]
    )
    sys.exit(64)

if not __package__:
    # The zipapp. PYTHONPATH is there for the ranks: a queue.py or random.py in it must not become ours.
    theirs = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path.sort(key=lambda path: os.path.abspath(path) in theirs)

from rerail_agent.entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
