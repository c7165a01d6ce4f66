"""What the device of this rank can do: its peak by the vendor's word, and the one measured at the start."""

import time

import torch

from rerail_trainer.planning.gpus import peak_flops_of

_SIZE = 8192
_ROUNDS = 20


def stated_peak(device: torch.device, given_tflops: float) -> float:
    """Dense bf16 FLOP/s: metrics.peak_tflops, else by the device's name; 0 where nobody knows."""
    if given_tflops:
        return given_tflops * 1e12
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0.0


def measured_peak(device: torch.device) -> float:
    """FLOP/s of products of bf16 matrices of 8192 x 8192, the best of three rounds; 0 on a CPU.

    Takes 0.1 s on an H100 and half a GiB.
    """
    if device.type != "cuda":
        return 0.0
    left, right = (torch.randn(_SIZE, _SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(_ROUNDS // 3):
            torch.mm(left, right, out=out)
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        best = max(best, 2 * _SIZE**3 * (_ROUNDS // 3) / seconds)
    return best


def memory_peak(device: torch.device) -> float:
    """Most bytes that this rank ever had: tensors on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
