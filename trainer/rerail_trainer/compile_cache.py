"""Where compiled kernels are kept between starts. Torch-free, and called before torch is imported: the
compiler reads its folders then.
"""

import hashlib
import platform
from collections.abc import MutableMapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .config import Config, canonical_json
from .cores import cores_per_rank
from .failures import BadConfig

FOLDER = ".compiled"
"""Below the checkpoint folder, where run.cache_dir names no other."""
_GPUS = Path("/proc/driver/nvidia/gpus")


def keep_compiled(config: Config, local_world_size: int, env: MutableMapping[str, str]) -> None:
    """Lets torch and Triton compile into a folder that outlives this process, unless `env` names one.

    A restart then compiles nothing again. Raises BadConfig where run.cache_dir cannot be made.
    """
    if not config.parallel.compile:
        return
    root = cache_root(config)
    if root is not None:
        folder = root / key_of(config)
        if config.run.cache_dir:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadConfig(
                    f"run.cache_dir={config.run.cache_dir} cannot be written: {error.strerror}"
                ) from error
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        env.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(cores_per_rank(local_world_size)))


def cache_root(config: Config) -> Path | None:
    """The folder for all keys; None where there is no folder that outlives the process."""
    if config.run.cache_dir:
        return Path(config.run.cache_dir)
    if config.checkpoint.dir and "://" not in config.checkpoint.dir:
        return Path(config.checkpoint.dir) / FOLDER
    return None


def key_of(config: Config) -> str:
    """torch, device and whatever decides which kernels there are: a change of any begins a folder of its own.

    World size is not in it: kernels of a rank are the same on any number of ranks.
    """
    parallel, model = config.parallel, asdict(config.model)
    shapes = {
        "model": model,
        "micro_batch": config.batch.micro_batch,
        "compute": parallel.compute_dtype,
        "recompute": parallel.recompute,
        "tensor": parallel.tensor,
        "expert": parallel.expert,
        "sharded": parallel.shard != 1,
        "documents": config.data.document_mask,
        "stage": config.train.stage,
    }
    digest = hashlib.sha256(canonical_json(shapes).encode()).hexdigest()[:12]
    return f"torch-{_torch_version()}-{_device(config)}-{digest}"


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _device(config: Config) -> str:
    """The GPU's name without asking torch; of a CPU its instruction set, for which kernels are made."""
    if config.parallel.device != "cpu":
        for information in sorted(_GPUS.glob("*/information")):
            for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Model":
                    return "-".join(value.split()).lower()
    return f"{platform.machine()}-{hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]}"


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    # Newer Arm kernels say Features where x86 says flags.
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
