"""GPUs as a plan sees them: peak, memory, links. Torch-free; also where the trainer finds a device's peak."""

from dataclasses import dataclass

from rerail_trainer.configure import nearest
from rerail_trainer.failures import BadConfig

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. Peaks are the vendor's dense bf16 figures; memory is what a program sees of it.

    Links in bytes per second and direction: `local` to the GPUs of its node, `remote` its share of the node's
    network cards (400 Gbit/s per GPU, as in the vendors' reference designs; 200 for A100).
    """

    name: str
    peak_flops: float
    memory_bytes: int
    local_bytes_per_second: float
    remote_bytes_per_second: float


_GPUS = (
    Gpu("a100-40gb", 312e12, 39 * GIB, 300e9, 25e9),
    Gpu("a100", 312e12, 79 * GIB, 300e9, 25e9),
    Gpu("l40s", 362e12, 44 * GIB, 32e9, 25e9),
    Gpu("h100", 989e12, 79 * GIB, 450e9, 50e9),
    Gpu("h200", 989e12, 139 * GIB, 450e9, 50e9),
    Gpu("gb200", 2500e12, 184 * GIB, 900e9, 50e9),
    Gpu("b200", 2250e12, 178 * GIB, 900e9, 50e9),
)
"""A name that is part of another comes after it: a device's name is looked for in this order."""

GPUS = {gpu.name: gpu for gpu in _GPUS}


def gpu_named(name: str) -> Gpu:
    """Raises BadConfig that names the nearest known one."""
    if name.lower() not in GPUS:
        raise BadConfig(f"unknown GPU {name!r}{nearest(name.lower(), list(GPUS))}")
    return GPUS[name.lower()]


def peak_flops_of(device_name: str) -> float:
    """Dense bf16 peak in FLOP/s of a device by the name that its driver gives it; 0 where it is not known."""
    words = device_name.lower().replace("-", " ").split()
    known = {**GPUS, "gh200": GPUS["h200"], "a800": GPUS["a100"], "h800": GPUS["h100"]}
    return next((gpu.peak_flops for name, gpu in known.items() if name.split("-")[0] in words), 0.0)
