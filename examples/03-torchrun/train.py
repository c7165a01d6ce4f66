"""A plain PyTorch script for torchrun: every rank says who it is, then all train.

torchrun --nproc-per-node=2 train.py [--steps 200] [--checkpoint-dir DIR]
"""

import argparse
import os
import pathlib

import torch
import torch.distributed as dist
from torch import nn

SAVE_EVERY = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint-dir", default=os.environ.get("CHECKPOINT_DIR", "checkpoints"))
    return parser.parse_args()


def batch_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a wavy surface, different for every step and rank."""
    generator = torch.Generator().manual_seed(step * 1000 + rank)
    points = torch.rand(256, 2, generator=generator) * 4 - 2
    return points, torch.sin(2 * points[:, :1]) * torch.cos(points[:, 1:])


def main() -> None:
    arguments = parse_arguments()
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    node, local_rank = os.environ["GROUP_RANK"], os.environ["LOCAL_RANK"]
    print(f"rank {rank} of {world}: local rank {local_rank} on node {node}", flush=True)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    model = nn.parallel.DistributedDataParallel(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    file = pathlib.Path(arguments.checkpoint_dir, "latest.pt")
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"rank {rank} of {world}: resumed from step {step}", flush=True)

    while step < arguments.steps:
        points, wanted = batch_of(step, rank)
        loss = nn.functional.mse_loss(model(points), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if rank == 0 and (step % SAVE_EVERY == 0 or step == arguments.steps):
            print(f"step {step}/{arguments.steps} loss {loss.item():.4f}", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
    dist.barrier()
    dist.destroy_process_group()
    print(f"rank {rank} of {world}: done after {step} steps", flush=True)


if __name__ == "__main__":
    main()
    # All is saved and said. Gloo's threads can abort an ordinary exit after that (seen with PyTorch 2.15).
    os._exit(0)
