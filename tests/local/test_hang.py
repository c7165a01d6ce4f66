"""`rerail run` with several ranks on a node: the one that the others wait for is named, whoever has numbered the ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.runs import Run, job, ledger_sums

pytestmark = [pytest.mark.local, pytest.mark.trainer, pytest.mark.timeout(400)]

PROGRAM = r"""
import faulthandler, json, os, signal
import torch
import torch.distributed as dist

def waits_for_its_data():
    while os.environ["RERAIL_ROUND"] == "1":
        signal.pause()

def tell(step):
    if dist.get_rank() == 0:
        with open(os.environ["RERAIL_PROGRESS"], "a") as told:
            told.write(json.dumps({"step": step, "total_steps": 4, "phase": "train"}) + "\n")

faulthandler.register(signal.SIGUSR1, all_threads=True)
dist.init_process_group("gloo")
for _ in range(3):
    dist.all_reduce(torch.ones(1))
tell(3)  # not before: that all are there may take as long as it likes
if dist.get_rank() == 2:
    waits_for_its_data()
dist.all_reduce(torch.ones(1))
tell(4)
dist.barrier()
os._exit(0)
"""


@pytest.mark.parametrize("launcher", ["PerRank", "PerNode"])
def test_of_two_ranks_on_a_node_the_one_that_never_came_to_the_collective_is_named(
    tmp_path: Path, new_run: Callable[..., Run], launcher: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    command = ["torchrun" if launcher == "PerNode" else "python", str(script)]
    run = new_run(job(tmp_path, command, nproc=2, launcher=launcher, failurePolicy={"hangSeconds": 4}))
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"], report["progress"]["step"]) == ("Complete", 2, 4)
    (incident,) = report["incidents"]
    assert (incident["class"], incident["rank"], incident["nodeRank"]) == ("Hang", 2, 1)
    assert "after step 3" in incident["message"]
    assert "rank 2 on local-1 elsewhere than the 3 others" in incident["message"]
    stands, wait = incident["logLines"]
    assert stands.startswith("rank 2: ") and wait.startswith("ranks 0-1, 3: ")
    if launcher == "PerRank":
        assert "waits_for_its_data" in stands and "all_reduce" in wait
    else:
        # Both ranks of a node share torchrun's pipe, so the kernel is asked; their own stacks are in the pod's log.
        assert "kernel: " in stands and "kernel: " in wait
        log = "".join(path.read_text() for path in (run.workdir / "logs").iterdir())
        assert "in waits_for_its_data" in log and "in all_reduce" in log
    assert ledger_sums(report)
