"""The reference page of failures, made from the taxonomy in the core.

`python -m rerail_operator.shell.failures_page --write` writes it, `--check` fails when it is not current.
"""

import sys
from typing import Final

from rerail_api.generated import keep_current
from rerail_operator.core.taxonomy import TABLE, in_words

FILE: Final = "docs/reference/failures.md"

_HEAD: Final = """<!-- Written by `python -m rerail_operator.shell.failures_page --write` from the code. -->
# Failures

What Rerail sees, what it calls it, and what it does. Of several signs the strongest is the root: an ordered
stop before a lost node or container, before a signal, before an exit code of our [table](exit-codes.md) (only
from programs that declare it), before any other exit. Your own rules (`failurePolicy.rules`) come before this
table and see the root only.

- Answer: the cheapest that can help. *In place*: the ranks start again in the same pods. *New pod*: the
  container is gone and is made anew, on the same node where there is room.
- Charged: counts against `failurePolicy.maxRestarts`, which counts from the last progress.
- Limit: how often the same failure at the same step ends the job, whoever is charged. Before the first step
  it is 2 where every rank of every node ended alike.
- Left alone: how long this job stays away from the node.
- Against the node: whose word it is that the node is to blame. What a job's own processes say concerns that
  job alone, until programs of a second namespace say the same: [strikes](../nodes.md).

| Sign | Class | Answer | Charged | Limit | Left alone | Against the node |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page as Markdown, in the order of the table; the same table gives the same bytes."""
    return _HEAD + "".join("| " + " | ".join(in_words(row)) + " |\n" for row in TABLE)


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say that it is not current (exit code 1)."""
    return keep_current("rerail_operator.shell.failures_page", {FILE: page()}, arguments)


if __name__ == "__main__":
    sys.exit(main())
