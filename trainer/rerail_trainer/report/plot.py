"""`plot`: JSONL of one or more runs as a picture. Needs the extra `plot`, and no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rerail_trainer.commands import Words
from rerail_trainer.failures import BadConfig

from .runs import read_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (".png", ".svg", ".pdf")


def main(words: Sequence[str]) -> int:
    """Writes the picture; 0. Raises BadConfig for files that hold no run or cannot be written."""
    asked = _parser().parse_args(list(words))
    if Path(asked.out).suffix.lower() not in _KINDS:
        raise BadConfig(f"plot: --out={asked.out} must end in one of {', '.join(_KINDS)}")
    if asked.smooth < 0:
        raise BadConfig(f"plot: --smooth={asked.smooth} must not be negative")
    runs = read_runs(asked.files)
    try:
        from .drawing import draw
    except ImportError as error:
        package = (error.name or "matplotlib").partition(".")[0]
        raise BadConfig(f"plot needs {package}: pip install {package}") from error
    _save(draw(runs, asked.smooth), asked.out)
    sys.stdout.write(f"{asked.out}\n")
    return 0


def _save(figure: Figure, path: str) -> None:
    import matplotlib as mpl

    try:
        # Words stay words in an SVG: they can be searched and copied.
        with mpl.rc_context({"svg.fonttype": "none"}):
            figure.savefig(path)
    except OSError as error:
        raise BadConfig(f"plot: {path} cannot be written: {error.strerror}") from error


def _parser() -> Words:
    words = Words("plot", "loss, tokens/s, MFU, checkpoint stalls and restarts of runs, as a picture")
    words.add_argument("files", nargs="+", metavar="RUN.jsonl", help="written by --metrics.jsonl")
    words.add_argument("--out", required=True, metavar="FILE", help="a .png, .svg or .pdf file")
    words.add_argument(
        "--smooth", type=int, default=0, metavar="N", help="mean over N steps; 0 takes one in fifty, 1 none"
    )
    return words
