"""A rank that tells that it computes slower than the others is named while it does, on a real run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.runs import Run, job

pytestmark = pytest.mark.local

SHARES = """
import json, os, pathlib, sys, time
rank, told = int(os.environ["RANK"]), os.environ["RERAIL_PROGRESS"]
slow, end = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
step = 0
while not end.exists():
    step += 1
    own = 2.0 if rank == 3 and slow.exists() else 1.0
    with open(told, "a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
        file.write(json.dumps({"rank": rank, "busy_seconds": own, "busy_steps": 10}) + "\\n")
    time.sleep(0.3)
"""


def test_a_slow_rank_is_named_and_let_go_again(tmp_path: Path, new_run: Callable[..., Run]) -> None:
    slow, end = tmp_path / "slow", tmp_path / "end"
    slow.touch()
    run = new_run(job(tmp_path, ["python", "-c", SHARES, str(slow), str(end)], nproc=2))
    named, gone = "rank 3 on local-1 is slow: 2.00 times the gang's median", "rank 3 is slow no more"
    run.until(lambda: named in run.output, "the slow rank is named", 60)
    slow.unlink()
    run.until(lambda: gone in run.output, "it is let go", 60)
    end.touch()
    assert run.finish() == 0, run.output
    assert run.output.count("is slow") == 2, "each is told once"
