"""The reference page of reasons, made from the closed list in the core.

`python -m rerail_operator.shell.reasons_page --write` writes it, `--check` fails when it is not current.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from rerail_api.crd import CHECKOUT, sync_files
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
    parser = argparse.ArgumentParser(prog="python -m rerail_operator.shell.reasons_page", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the page")
    what.add_argument("--check", action="store_true", help="fail when the page is not current")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="root of the checkout")
    chosen = parser.parse_args(arguments)
    return sync_files({FILE: page()}, chosen.root, write=chosen.write)


if __name__ == "__main__":
    sys.exit(main())
