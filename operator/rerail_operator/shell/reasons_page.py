"""The reference page of reasons, made from the closed list in the core.

`python -m rerail_operator.shell.reasons_page --write` writes it, `--check` fails when it is not current.
"""

import sys
from typing import Final

from rerail_api.generated import keep_current
from rerail_operator.core.reasons import SENTENCES

FILE: Final = "docs/reference/reasons.md"

_HEAD: Final = """<!-- Written by `python -m rerail_operator.shell.reasons_page --write` from the code. -->
# Reasons

One word for machines, one sentence for people. The same word stands in `status.reason`, in the conditions and
in the events of a TrainingJob; the message beside it has the names and numbers of the case at hand. The list
is closed: a word that is not here is not from this version of Rerail.

| Reason | What it means |
|---|---|
"""


def page() -> str:
    """The page as Markdown, in the order of a job's life; the same list gives the same bytes."""
    return _HEAD + "".join(f"| `{reason.value}` | {sentence} |\n" for reason, sentence in SENTENCES.items())


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say that it is not current (exit code 1)."""
    return keep_current("rerail_operator.shell.reasons_page", {FILE: page()}, arguments)


if __name__ == "__main__":
    sys.exit(main())
