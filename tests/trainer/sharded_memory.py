"""Measures what a step takes on one of eight ranks under FSDP and tensor parallelism, for the tests of `plan`.

A program of its own: its process group is torch's fake one, in which collectives do nothing and the other
ranks do not exist; memory is the same as if they did.
"""

import json
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from rerail_trainer.config import Config, ModelConfig, ParallelConfig
from rerail_trainer.control import Control
from rerail_trainer.environment import RankIdentity
from rerail_trainer.meeting import Meeting
from rerail_trainer.parallel.layouts import lay_out
from rerail_trainer.parallel.mesh import mesh_of
from rerail_trainer.parallel.shards import local_shard
from rerail_trainer.planning.memory import Setup, memory_of

from .memory_account import MemoryAccount

WORLD, MICRO_BATCH = 8, 4
DENSE = ModelConfig(layers=6, dim=128, heads=8, kv_heads=4, head_dim=16, ffn=384, vocab=1024, seq_len=128)
MIXED = replace(DENSE, experts=8, experts_per_token=2, expert_ffn=128, shared_ffn=128)


def measured(config: Config, micro_batches: int) -> int:
    """Peak bytes of the second step, whose gradients and moments are there already."""
    account = MemoryAccount()
    with account:
        identity = RankIdentity(0, WORLD, 0, WORLD, "127.0.0.1", launched=True)
        layout = lay_out(config, Meeting(identity, torch.device("cpu"), Control(0, 1)))
        for block in layout.model.blocks:
            block.recompute = config.parallel.recompute
        locals_ = [local_shard(parameter).tensor for parameter in layout.model.parameters()]
        moments = [torch.zeros_like(local) for local in locals_ for _ in range(2)]
        with torch.no_grad():
            for local in locals_:
                local.zero_()
        tokens = torch.zeros(MICRO_BATCH, config.model.seq_len, dtype=torch.int64)
        for _ in range(2):
            account.peak = 0
            for index in range(micro_batches):
                with layout.backward(last=index == micro_batches - 1):
                    layout.loss(tokens, tokens.clone()).backward()
        del moments
    return account.peak


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    cases = [
        (DENSE, {"shard": 8}, "none", 1),
        (DENSE, {"shard": 4}, "selective", 2),
        (MIXED, {"shard": 8}, "none", 2),
        (MIXED, {"shard": 8}, "block", 1),
        (DENSE, {"shard": 4, "tensor": 2}, "block", 2),
        (MIXED, {"shard": 4, "tensor": 2}, "none", 1),
    ]
    for model, axes, recompute, micro_batches in cases:
        parallel = ParallelConfig(compute_dtype="bfloat16", device="cpu", recompute=recompute, **axes)
        config = Config(model=model, parallel=parallel)
        mesh = mesh_of(config, WORLD)
        setup = Setup(mesh, recompute, MICRO_BATCH, micro_batches)
        line = {
            "case": f"{mesh}, recompute {recompute}, {model.experts} experts, {micro_batches} micro-batches",
            "planned": memory_of(config, setup, fused_norms=False).total,
            "measured": measured(config, micro_batches),
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
