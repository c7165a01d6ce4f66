"""Measures what a step takes on one rank under FSDP, tensor and expert parallelism, for the tests of `plan`.

A program of its own. Started alone it is one of eight ranks in torch's fake process group: collectives do
nothing and the other ranks do not exist; memory is the same as if they did. Experts on other ranks need real
ones, because how many tokens travel decides what memory they take: started with RANK, it is one of two.
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from rerail_trainer.config import Config, ModelConfig, ParallelConfig
from rerail_trainer.control import Control
from rerail_trainer.environment import RankIdentity
from rerail_trainer.meeting import Meeting
from rerail_trainer.model import fill
from rerail_trainer.parallel.layouts import lay_out
from rerail_trainer.parallel.mesh import mesh_of
from rerail_trainer.parallel.shards import local_shard
from rerail_trainer.planning.memory import Setup, memory_of

from .memory_account import MemoryAccount

WORLD, MICRO_BATCH = int(os.environ.get("WORLD_SIZE", "8")), 4
RANK = int(os.environ.get("RANK", "0"))
DENSE = ModelConfig(layers=4, dim=128, heads=8, kv_heads=4, head_dim=16, ffn=384, vocab=1024, seq_len=128)
MIXED = replace(DENSE, experts=8, experts_per_token=2, expert_ffn=128, shared_ffn=128)


ALONE = [
    (DENSE, {"shard": 8}, "none", 1),
    (DENSE, {"shard": 4}, "selective", 2),
    (MIXED, {"shard": 8}, "none", 2),
    (MIXED, {"shard": 8}, "block", 1),
    (DENSE, {"shard": 4, "tensor": 2}, "block", 2),
    (MIXED, {"shard": 4, "tensor": 2}, "none", 1),
]


def measured(config: Config, micro_batches: int) -> int:
    """Peak bytes of the second step, whose gradients and moments are there already."""
    account = MemoryAccount(resizes=True)
    with account:
        identity = RankIdentity(RANK, WORLD, RANK, WORLD, "127.0.0.1", launched=True)
        layout = lay_out(config, Meeting(identity, torch.device("cpu"), Control(0, 1)))
        for block in layout.model.blocks:
            block.recompute = config.parallel.recompute
        locals_ = [local_shard(parameter).tensor for parameter in layout.model.parameters()]
        moments = [torch.zeros_like(local) for local in locals_ for _ in range(2)]
        fill(layout.model, seed=1)
        generator = torch.Generator().manual_seed(RANK)
        shape = (MICRO_BATCH, config.model.seq_len)
        tokens = torch.randint(config.model.vocab, shape, generator=generator)
        for _ in range(2):
            account.peak = 0
            for index in range(micro_batches):
                with layout.backward(last=index == micro_batches - 1):
                    layout.loss(tokens, tokens.clone()).backward()
        del moments
    return account.peak


def main() -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo")
        cases = [
            (MIXED, {"expert": 2}, "none", 1),
            (MIXED, {"expert": 2, "shard": 2}, "block", 2),
        ]
    else:
        dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
        cases = ALONE
    for model, axes, recompute, micro_batches in cases:
        _tell(model, axes, recompute, micro_batches)


def _tell(model: ModelConfig, axes: dict[str, int], recompute: Any, micro_batches: int) -> None:
    parallel = ParallelConfig(compute_dtype="bfloat16", device="cpu", recompute=recompute, **axes)
    config = Config(model=model, parallel=parallel)
    mesh = mesh_of(config, WORLD)
    line = {
        "case": f"{mesh}, recompute {recompute}, {model.experts} experts, {micro_batches} micro-batches",
        "planned": memory_of(
            config, Setup(mesh, recompute, MICRO_BATCH, micro_batches), fused_norms=False
        ).total,
        "measured": measured(config, micro_batches),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
