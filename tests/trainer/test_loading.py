"""What a load reads, who reads it, how much of it is verified, and that all ranks load the same step."""

import json
import re
import shutil
from pathlib import Path

import pytest

from .gang import Gang, Yard, Zygote, free_port
from .test_crash_points import resumed_from
from .test_damage import flip, two_steps, two_steps_made

__all__ = ["two_steps", "two_steps_made"]

FOUR = ("--train.steps=4", "--optim.horizon_steps=8")
MORE = ("--train.steps=100000", "--optim.horizon_steps=8", "--checkpoint.every_steps=100000")
LAYOUTS = {"replicated": (), "sharded": ("--parallel.shard=0",)}


@pytest.fixture(scope="session", params=LAYOUTS)
def made(
    request: pytest.FixtureRequest, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A layout, and a checkpoint folder in which four ranks have committed steps 2 and 4 in it."""
    yard = Yard(zygote, tmp_path_factory.mktemp(f"made-{request.param}"))
    yard.run(*FOUR, *LAYOUTS[request.param], ranks=4)
    return request.param, yard.checkpoints


def bytes_read(gang: Gang, port: int) -> int:
    """By all ranks together, as rank 0's metrics tell once training goes on."""
    gang.until(lambda: gang.losses())
    text = gang.metrics(port)
    match = re.search(r"^rerail_trainer_checkpoint_read_bytes (\S+)$", text, re.MULTILINE)
    assert match, text
    return int(float(match.group(1)))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_part_that_all_ranks_hold_is_read_once_per_node_and_a_part_of_one_rank_once_in_all(
    yard: Yard, made: tuple[str, Path], nodes: int
) -> None:
    layout, folder = made
    shutil.copytree(folder, yard.checkpoints)
    step = yard.checkpoints / "step-00000004"
    tensors = sum(path.stat().st_size for path in step.glob("rank-*.safetensors"))
    hosts = sum(path.stat().st_size for path in step.glob("rank-*.json"))
    port = free_port()
    words = (*MORE, *LAYOUTS[layout], f"--metrics.port={port}")
    gang = yard.start(*words, ranks=4, per_node=4 // nodes)
    times = nodes if layout == "replicated" else 1
    assert bytes_read(gang, port) == times * tensors + hosts


def test_fewer_ranks_read_each_byte_of_the_tensors_once(yard: Yard, made: tuple[str, Path]) -> None:
    layout, folder = made
    shutil.copytree(folder, yard.checkpoints)
    step = yard.checkpoints / "step-00000004"
    tensors = sum(path.stat().st_size for path in step.glob("rank-*.safetensors"))
    port = free_port()
    gang = yard.start(*MORE, *LAYOUTS[layout], f"--metrics.port={port}", ranks=2)
    # Nobody needs the generators of another world size.
    assert bytes_read(gang, port) == tensors


SHARED_BY_SOME = {
    "two replicas of two shards": (4, ("--parallel.shard=2",), ("--parallel.shard=2",)),
    "two tensor ranks of each of two replicas": (4, ("--parallel.tensor=2",), ("--parallel.tensor=2",)),
    "experts over two ranks, each held by two": (
        4, ("--model.experts=4", "--parallel.expert=2"), ("--model.experts=4", "--parallel.expert=2"),
    ),
    "two shards that become four": (2, ("--parallel.shard=0",), ("--parallel.shard=0",)),
}  # fmt: skip
"""Ranks that saved, in which layout, and the layout of the four that load."""


@pytest.mark.parametrize("case", SHARED_BY_SOME)
def test_a_part_that_some_ranks_of_a_node_hold_is_read_once_by_the_node(yard: Yard, case: str) -> None:
    ranks, saved, loaded = SHARED_BY_SOME[case]
    yard.run(*FOUR, *saved, ranks=ranks)
    step = yard.checkpoints / "step-00000004"
    hosts = sum(path.stat().st_size for path in step.glob("rank-*.json")) if ranks == 4 else 0
    tensors = sum(path.stat().st_size for path in step.glob("rank-*.safetensors"))
    port = free_port()
    gang = yard.start(*MORE, *loaded, f"--metrics.port={port}", ranks=4)
    assert bytes_read(gang, port) == tensors + hosts


def test_all_ranks_load_the_step_that_rank_0_found_whatever_storage_shows_the_others(
    yard: Yard, two_steps: Path, uninterrupted: dict[int, float]
) -> None:
    blind = yard.run("--train.steps=5", "--optim.horizon_steps=8", ranks=2, blind=1)
    assert resumed_from(blind) == [4]
    assert blind.losses() == {5: uninterrupted[5]}


@pytest.mark.parametrize(
    ("verify", "harm", "newest"),
    [
        ("touched", "a byte that is read", 2),
        ("touched", "a byte that nobody reads", 4),
        ("all", "a byte that nobody reads", 2),
        ("size", "a byte that is read", 4),
        ("size", "an end that is cut off", 2),
    ],
)
def test_a_load_verifies_as_much_as_it_is_told(
    yard: Yard, two_steps: Path, verify: str, harm: str, newest: int
) -> None:
    """One rank resumes from two: nobody needs the other ranks' generators."""
    step = two_steps
    if harm == "a byte that is read":
        # The last value of the file: any other would do, but the last exponent must stay finite.
        flip(step / "rank-00001.safetensors", (step / "rank-00001.safetensors").stat().st_size - 3)
    elif harm == "a byte that nobody reads":
        flip(step / "rank-00001.json", 40)
    else:
        path = step / "rank-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    gang = yard.run(*FOUR[1:], "--train.steps=5", f"--checkpoint.verify={verify}")
    assert resumed_from(gang) == [newest]
    assert ("is damaged" in gang.output()) == (newest == 2)
    damaged = gang.events("damaged")
    assert [event["set_aside"][0][:21] for event in damaged] == ["corrupt-step-00000004"] * (newest == 2)


def test_a_manifest_of_form_1_is_read_and_the_next_save_has_form_2(yard: Yard) -> None:
    from rerail_trainer.checkpoint.manifest import seal

    yard.run(*FOUR, ranks=2)
    for path in yard.checkpoints.glob("step-*/MANIFEST.json"):
        body = json.loads(path.read_text())
        del body["digest"], body["tokenizer"]
        assert body["format"] == 2
        path.write_bytes(seal({**body, "format": 1, "mode": body.pop("layout")}))
    rest = yard.run("--train.steps=6", "--optim.horizon_steps=8", ranks=2)
    assert resumed_from(rest) == [4]
    manifest = json.loads((yard.checkpoints / "step-00000006" / "MANIFEST.json").read_text())
    assert (manifest["format"], manifest["layout"], manifest["tokenizer"]) == (2, "2 replicas", "bytes")
