"""A plain PyTorch script that never heard of Rerail: data-parallel training with its own checkpoint file.

It learns to continue a simple number sequence. Every rank must be started with RANK, WORLD_SIZE, MASTER_ADDR
and MASTER_PORT set, as any launcher does; alone it trains as one process.

    python train.py [--steps 300] [--checkpoint-dir DIR]
"""

import argparse
import os
import pathlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

VOCAB, LENGTH, BATCH = 64, 32, 32
SAVE_EVERY = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-dir", default=os.environ.get("CHECKPOINT_DIR", "checkpoints"))
    return parser.parse_args()


def batch_of(step: int, rank: int) -> torch.Tensor:
    """Sequences that count up by a hidden stride, different for every step and rank."""
    generator = torch.Generator().manual_seed(step * 1000 + rank)
    start = torch.randint(VOCAB, (BATCH, 1), generator=generator)
    stride = torch.randint(1, 8, (BATCH, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH + 1)) % VOCAB


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 64)
        self.recurrent = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, VOCAB)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


def main() -> None:
    arguments = parse_arguments()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if os.environ.get("MASTER_ADDR") == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = Model()
    if world > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    file = pathlib.Path(arguments.checkpoint_dir, "latest.pt")
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"rank {rank} of {world}: resumed from step {step}", flush=True)

    while step < arguments.steps:
        tokens = batch_of(step, rank)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
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
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    print(f"rank {rank} of {world}: done after {step} steps", flush=True)


if __name__ == "__main__":
    main()
    # All is saved and said. Gloo's threads can abort an ordinary exit after that (seen with PyTorch 2.15).
    os._exit(0)
