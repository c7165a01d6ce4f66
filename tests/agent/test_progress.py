"""The progress file: merged, cut, and never fatal."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rerail_agent.progress import ProgressFile
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(line + "\n" for line in lines)


def test_the_newest_value_of_every_field_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path)
    assert progress.poll(0.0) is False and progress.newest is None and progress.read_at is None
    append(path, '{"phase": "init", "contract": 1}')
    assert progress.poll(1.0) is True
    append(
        path,
        '{"step": 1, "loss": 3.5, "checkpoint_step": 0}',
        '{"step": 2, "loss": 3.0, "stall_seconds": 0.25}',
        '{"step": 3, "loss": NaN, "contract": 0, "phase": "train"}',
    )
    assert progress.poll(2.0) is True and progress.poll(3.0) is False
    losses = {"first_loss": 3.5, "loss": 3.0, "stall_seconds": 0.25}
    assert progress.newest == {"phase": "train", "contract": 1, "step": 3, "checkpoint_step": 0, **losses}
    assert progress.contract is True and progress.read_at == 2.0


def test_what_is_no_progress_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path)
    append(
        path,
        "hello",
        "[1]",
        "{}",
        '{"step": true}',
        '{"step": "9"}',
        "[" * 5000,
        '{"step": 1' + " " * 5000 + "}",
    )
    append(
        path,
        '{"step": 1' + "0" * 30 + "}",
        '{"step": ' + "9" * 4050 + "}",
        '{"phase": "' + "x" * 99 + '"}',
        '{"loss": 1.5}',
    )
    assert progress.poll(0.0) is False and progress.newest is None
    append(path, '{"step": 5}')
    assert progress.poll(0.0) is True and progress.newest == {"step": 5}


def test_a_torn_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path)
    path.write_text('{"step": 1}\n{"st')
    progress.poll(0.0)
    append(path, 'ep": 2}')
    progress.poll(0.0)
    assert progress.newest == {"step": 2}


def test_the_file_is_cut_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.touch()
    progress = ProgressFile(path, limit=64 * 1024)
    with path.open("a") as file:
        for step in range(20000):
            file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
            if step % 500 == 0:
                file.flush()
                progress.poll(0.0)
                assert path.stat().st_size <= 64 * 1024 + 500 * 64
    progress.poll(0.0)
    assert progress.newest == {"step": 19999, "loss": 1.0, "first_loss": 1.0}


def test_a_writer_without_append_is_read_past_its_hole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path, limit=64 * 1024)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for step in range(0, 20000):
            os.write(fd, b'{"step": %d, "tokens": 1}\n' % step)
            if step % 500 == 0:
                progress.poll(0.0)
                assert progress.newest is not None and progress.newest["step"] == step
                assert path.stat().st_blocks * 512 <= 64 * 1024 + 500 * 64
    finally:
        os.close(fd)


def test_a_file_that_began_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path)
    append(path, '{"step": 1, "loss": 2.0}', '{"step": 2}')
    progress.poll(0.0)
    path.write_text('{"step": 0}\n')
    assert progress.poll(0.0) is True and progress.newest == {
        "step": 0,
        "loss": 2.0,
        "first_loss": 2.0,
    }
    path.unlink()
    assert progress.poll(0.0) is False


async def test_progress_is_streamed_and_phases_at_once(coordinator: Coordinator, agent: AgentProcess) -> None:
    go = agent.folder / "go"
    script = (
        'echo \'{"phase": "init"}\' >> $RERAIL_PROGRESS; '
        f"until [ -e {go} ]; do sleep 0.02; done; "
        'for i in 1 2 3; do echo "{\\"step\\": $i, \\"phase\\": \\"train\\"}" >> $RERAIL_PROGRESS; done; '
        "sleep 1000"
    )
    agent.start(coordinator.address, "sh", "-c", script)
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await coordinator.until(lambda r: r["progress"] == {"phase": "init"})
    go.touch()
    report = await coordinator.until(lambda r: (r["progress"] or {}).get("step") == 3)
    assert report["progress"] == {"phase": "train", "step": 3} and report["progress_age"] < 5
    coordinator.join(2)
    assert (await coordinator.state("Ready", 2))["progress"] is None


def test_every_rank_of_the_node_may_tell_how_busy_it_is(tmp_path: Path) -> None:
    path = tmp_path / "p"
    progress = ProgressFile(path)
    append(
        path,
        '{"step": 7}',
        '{"rank": 2, "busy_seconds": 0.5, "busy_steps": 10}',
        '{"rank": 3, "busy_seconds": 1, "busy_steps": 10}',
        '{"rank": 3, "busy_seconds": 0.8, "busy_steps": 10}',
        '{"rank": 4, "busy_seconds": 0.5, "busy_steps": 10}',
        '{"rank": 2, "busy_seconds": NaN, "busy_steps": 10}',
        '{"rank": 2, "busy_seconds": -1, "busy_steps": 10}',
        '{"rank": 2, "busy_seconds": 1, "busy_steps": 0}',
        '{"rank": true, "busy_seconds": 1, "busy_steps": 1}',
        '{"rank": 2, "busy_seconds": 1e300, "busy_steps": 1}',
    )
    progress.poll(1.0)
    assert progress.busy(range(2, 4)) == {2: (1, 0.05), 3: (2, 0.08)}
    assert progress.newest == {"step": 7}, "how busy a rank is, is no progress"


async def test_what_ranks_tell_of_their_share_is_reported(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    script = (
        'echo "{\\"rank\\": $RANK, \\"busy_seconds\\": 0.$RANK, \\"busy_steps\\": 10}" >> $RERAIL_PROGRESS; '
        'echo "{\\"rank\\": 0, \\"busy_seconds\\": 9, \\"busy_steps\\": 1}" >> $RERAIL_PROGRESS; exec sleep 1000'
    )
    agent.with_timing(heartbeat=0.2).start(coordinator.address, "sh", "-c", script)
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, node_rank=1, num_nodes=2, nproc=2)
    report = await coordinator.until(lambda r: len(r["busy"]) == 2)
    assert report["busy"] == {"2": [1, 0.02], "3": [1, 0.03]}, "another node's rank is not ours to tell of"
    coordinator.join(2)
    assert (await coordinator.state("Ready", 2))["busy"] == {}


def test_a_contract_may_be_declared_alone(tmp_path: Path) -> None:
    path = tmp_path / "p"
    append(path, '{"contract": 1}')
    progress = ProgressFile(path)
    assert progress.poll(1.0) and progress.contract
    assert progress.newest == {"contract": 1} and progress.moved_at is None
