"""Files that are made from the code: written with `--write`, compared with `--check`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]


def keep_current(module: str, texts: Mapping[str, str], arguments: list[str] | None = None) -> int:
    """The whole program of a generator: `texts` by path below the checkout's root.

    0 when all are written or current, 1 when one is not. Raises SystemExit on wrong arguments.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Keeps generated files current.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the files")
    what.add_argument("--check", action="store_true", help="fail when a file is not current")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="root of the checkout")
    chosen = parser.parse_args(arguments)
    stale = [name for name, text in texts.items() if not _holds(chosen.root / name, text)]
    for name in stale:
        if chosen.write:
            (chosen.root / name).parent.mkdir(parents=True, exist_ok=True)
            (chosen.root / name).write_text(texts[name])
            sys.stdout.write(f"wrote {name}\n")
        else:
            sys.stderr.write(f"{name} is not current: run the same command with --write\n")
    return 1 if stale and not chosen.write else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text
