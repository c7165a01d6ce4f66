"""Launcher PerNode: a plain `torchrun train.py` on two nodes, and what is learnt when its rank fails."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerail_agent.torchrun import find_cause
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess

TORCHRUN = str(Path(sys.executable).parent / "torchrun")

TORCH_SECONDS = 200.0
"""The import of torch alone takes half a minute on a machine that compiles Kubernetes meanwhile."""

MEETS = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
assert os.environ["TORCHELASTIC_MAX_RESTARTS"] == "0"
line = f"rank {dist.get_rank()} of {dist.get_world_size()} sums {total.item()} round {os.environ['RERAIL_ROUND']}\\n"
os.write(1, line.encode())  # in one piece: both ranks of a node share the pipe
dist.destroy_process_group()
"""
EXITS = "import os, sys\nprint('about to leave', flush=True)\nsys.exit(75)\n"
RAISES = """
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError("the data is bad")

main()
"""
DIES = "import os\nprint('going', flush=True)\nos.kill(os.getpid(), 9)\n"


async def released(coordinator: Coordinator, **release: Any) -> None:
    await coordinator.hello()
    coordinator.join(1)
    ready = await coordinator.state("Ready", 1)
    coordinator.run(1, **{"master_port": ready["port"], **release})


@pytest.mark.trainer
async def test_two_nodes_of_torchrun_meet(new_agent: Callable[[], AgentProcess], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(MEETS)
    async with Coordinator() as one, Coordinator() as two:
        agents = [
            new_agent().start(leader.address, TORCHRUN, str(script), RERAIL_LAUNCHER="PerNode")
            for leader in (one, two)
        ]
        one.patience = two.patience = TORCH_SECONDS
        await asyncio.gather(one.hello(), two.hello())
        one.join(1)
        two.join(1)
        port = (await one.state("Ready", 1))["port"]
        await two.state("Ready", 1)
        for node_rank, leader in enumerate((one, two)):
            leader.run(1, node_rank=node_rank, num_nodes=2, nproc=2, master_port=port)
        await asyncio.gather(one.state("Done", 1), two.state("Done", 1))
        printed = "".join(agent.output() for agent in agents)
        for rank in range(4):
            assert f"[node {rank // 2}] rank {rank} of 4 sums 10.0 round 1\n" in printed


@pytest.mark.trainer
@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        (EXITS, {"exit_code": 75, "signal": None, "exception": None, "lines": ["about to leave"]}),
        (RAISES, {"exit_code": 1, "exception": "ValueError", "last_line": "ValueError: the data is bad"}),
        (DIES, {"exit_code": None, "signal": 9, "exception": None, "lines": ["going"]}),
    ],
    ids=["exit code", "recorded exception", "signal"],
)
async def test_the_rank_behind_torchrun_is_found(
    coordinator: Coordinator, agent: AgentProcess, tmp_path: Path, program: str, wanted: dict[str, Any]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(program)
    agent.start(coordinator.address, TORCHRUN, str(script), RERAIL_LAUNCHER="PerNode")
    coordinator.patience = TORCH_SECONDS
    await released(coordinator)
    evidence = (await coordinator.state("Failed", 1))["exit"]
    assert {key: evidence[key] for key in wanted} == wanted
    assert evidence["rank"] is None and evidence["local_rank"] is None
    assert evidence["codes"] == {"0": wanted["exit_code"] if wanted["exit_code"] else -9}


REPORT = """worker says this
E1124 05:49:40.622000 24429 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 1 (pid: 24512) of binary: python
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 24511)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 24512)
"""


def test_torchruns_own_words(tmp_path: Path) -> None:
    cause = find_cause(tmp_path / "none", REPORT.format(code=82).splitlines())
    assert cause.code == 82 and cause.lines == ("worker says this",)
    assert cause.last_line == "torchrun: local rank 1 ended with exit code 82"
    assert find_cause(tmp_path / "none", REPORT.format(code=-6).splitlines()).code == -6
    assert find_cause(tmp_path / "none", ["nothing", "of the kind"]).code is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"message": 3}', '{"message": {"message": 4}}', "[" * 9999]
)
def test_an_error_file_that_cannot_be_read_is_no_evidence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(content)
    assert find_cause(path, ["x"]).code is None


def test_an_error_file_says_more_than_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    stack = "Traceback (most recent call last):\n  File x\nmy.Error: no\n"
    content = {"message": {"message": "my.Error: no", "extraInfo": {"py_callstack": stack}, "errorCode": 3}}
    path.write_text(json.dumps(content))
    cause = find_cause(path, REPORT.format(code=1).splitlines())
    assert (cause.code, cause.exception, cause.last_line) == (3, "Error", "my.Error: no")
    assert cause.lines == ("Traceback (most recent call last):", "  File x", "my.Error: no")
