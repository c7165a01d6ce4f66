"""Launcher PerNode: what torchrun must be told, and what it tells about the rank that failed.

torchrun exits 1 whatever its rank's code was. The truth is in TORCHELASTIC_ERROR_FILE when the program is
decorated with `record`, else in the lines that torchrun prints about the failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerail_agent.orders import Release

ERROR_FILE_BYTES = 1024 * 1024
LAUNCHER_LINES = 120
"""Lines of a launcher's output to remember: its own report of a failure alone is some 45 lines long."""

_OWN_LINE = "torch/distributed/elastic/"
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_EXITCODE = re.compile(r"^\s*exitcode\s*:\s*(-?\d+)\b")
_ROOT_CAUSE = "Root Cause (first observed failure):"


@dataclass(frozen=True)
class Cause:
    """What the launcher told about the first rank that failed; `code` is negative for a signal."""

    code: int | None = None
    exception: str | None = None
    last_line: str | None = None
    lines: tuple[str, ...] = ()


def launcher_env(release: Release, job_uid: str, error_file: str) -> dict[str, str]:
    """Environment under which a plain `torchrun train.py` meets the other nodes of this round."""
    address = release.master_addr
    return {
        "PET_NNODES": str(release.num_nodes),
        "PET_NPROC_PER_NODE": str(release.nproc),
        "PET_NODE_RANK": str(release.node_rank),
        # torchrun wants an IPv6 address in brackets here, and nowhere else
        "PET_MASTER_ADDR": f"[{address}]" if ":" in address else address,
        "PET_MASTER_PORT": str(release.master_port),
        "PET_MAX_RESTARTS": "0",
        "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ID": f"{job_uid}-{release.round}",
        "TORCHELASTIC_ERROR_FILE": error_file,
    }


def find_cause(error_file: Path, lines: Sequence[str]) -> Cause:
    """The failed rank's code and exception, as far as the error file and the printed lines tell."""
    printed, recorded = _from_lines(lines), _from_error_file(error_file)
    return Cause(
        code=recorded.code if recorded.code is not None else printed.code,
        exception=recorded.exception,
        last_line=recorded.last_line or printed.last_line,
        lines=recorded.lines or printed.lines,
    )


def _from_error_file(path: Path) -> Cause:
    try:
        with path.open("rb") as file:
            message = json.loads(file.read(ERROR_FILE_BYTES))["message"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Cause()
    if isinstance(message, str):
        return Cause(last_line=message.strip().splitlines()[-1] if message.strip() else None)
    return _from_message(message) if isinstance(message, dict) else Cause()


def _from_message(message: dict[str, Any]) -> Cause:
    text, code, extra = message.get("message"), message.get("errorCode"), message.get("extraInfo")
    stack = extra.get("py_callstack") if isinstance(extra, dict) else None
    if not isinstance(text, str) or not text.strip():
        return Cause()
    first = text.strip().splitlines()[0]
    name = first.partition(":")[0].rpartition(".")[2]
    return Cause(
        code=code if isinstance(code, int) and not isinstance(code, bool) and code != 0 else None,
        exception=name if name.isidentifier() else None,
        last_line=first,
        lines=tuple(stack.rstrip().splitlines()) if isinstance(stack, str) else (),
    )


def _from_lines(lines: Sequence[str]) -> Cause:
    code: int | None = None
    told = ""
    in_root = False
    for line in lines:
        if (match := _FAILED.search(line)) is not None:
            code, told = int(match.group(1)), f"torchrun: local rank {match.group(2)} ended with "
        in_root = in_root or _ROOT_CAUSE in line
        if in_root and (match := _EXITCODE.match(line)) is not None:
            code = int(match.group(1))
    if code is None:
        return Cause()
    told = told or "torchrun: a rank ended with "
    told += f"signal {-code}" if code < 0 else f"exit code {code}"
    return Cause(code=code, last_line=told, lines=_before_own(lines))


def _before_own(lines: Sequence[str]) -> tuple[str, ...]:
    """What the ranks printed before torchrun began to report; all of it if torchrun alone spoke."""
    for i, line in enumerate(lines):
        if _OWN_LINE in line and i > 0:
            return tuple(lines[:i])
    return tuple(lines)
