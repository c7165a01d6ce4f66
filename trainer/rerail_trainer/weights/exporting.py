"""Writing a model directory: every tensor read, cast and written by itself, config.json last."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerail_api.contract import ExitCode
from rerail_trainer.checkpoint.tensorfile import Damaged
from rerail_trainer.data.tokenizer import Tokenizer, open_tokenizer
from rerail_trainer.failures import BadConfig, TrainerExit
from rerail_trainer.model import Transformer

from .architectures import Architecture
from .checkpoints import CheckpointSource, committed_steps, is_checkpoint
from .config_json import CONFIG_FILE, architecture_of, config_json
from .hugging_face import HuggingFaceSource, is_hugging_face
from .names import counterparts
from .source import BALANCE, Source, model_tensors, refuse_other_tensors
from .tokenizer_files import ends_of, model_files, tokenizer_beside, tokenizer_left_in
from .writing import Entry, write_files, write_whole

GENERATION_FILE = "generation_config.json"
_OUR_FILES = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json"
    r"|chat_template\.jinja|generation_config\.json|\..+\.new"
)


@dataclass(frozen=True)
class Order:
    """What to export, and how; empty and None leave it to what is there."""

    path: str
    out: str
    step: int | None = None
    dtype: str = "stored"
    limit: int = 5 * 10**9
    """Bytes of tensors in one file."""
    tokenizer: str = ""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    architecture: str
    origin: str
    dtype: str
    bytes: int
    tokenizer: bool


def export(order: Order, tell: Callable[[str], None]) -> Exported:
    """Writes `order.out`; `tell` is told of every finished file.

    BadConfig, before anything is written, for a model that no architecture of the layout computes and for a
    folder that is in use; TrainerExit for damage: then the folder has no config.json, and is no model.
    """
    source, tokenizer = _opened(order)
    architecture = architecture_of(source.config)
    dtype = source.dtype if order.dtype == "stored" else getattr(torch, order.dtype)
    try:
        entries = _entries(source, architecture, dtype)
        folder = _fresh(order.out)
        size = write_files(folder, entries, order.limit, tell)
        _describe(folder, source, tokenizer, dtype)
    except Damaged as error:
        raise TrainerExit(
            ExitCode.NO_CHECKPOINT, f"{source.origin} is damaged ({error}); export an older one with --step"
        ) from error
    except OSError as error:
        raise BadConfig(f"{error.filename or order.out}: {error.strerror}; nothing is exported") from error
    return Exported(architecture.name, source.origin, _spoken(dtype), size, tokenizer is not None)


def _describe(folder: Path, source: Source, tokenizer: Tokenizer | None, dtype: torch.dtype) -> None:
    """Writes what stands beside the weights. config.json comes last: it makes the folder a model."""
    tokens: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        tokens["eos_token_id"] = ends_of(tokenizer)
        for file, data in model_files(tokenizer, source.config.seq_len, source.chats).items():
            write_whole(folder / file, data)
    write_whole(folder / GENERATION_FILE, _json({"_from_model_config": True, **tokens}))
    settings = config_json(source.config, architecture_of(source.config))
    write_whole(folder / CONFIG_FILE, _json({**settings, **tokens, "torch_dtype": _spoken(dtype)}))


def _opened(order: Order) -> tuple[Source, Tokenizer | None]:
    given = open_tokenizer(order.tokenizer) if order.tokenizer else None
    if is_hugging_face(order.path):
        return HuggingFaceSource(order.path), given or tokenizer_beside(order.path)
    if not is_checkpoint(order.path):
        raise BadConfig(f"{order.path} holds neither a committed checkpoint nor {CONFIG_FILE}")
    storage, steps = committed_steps(order.path, order.step)
    return CheckpointSource(storage, steps[0]), given or tokenizer_left_in(storage)


def _entries(source: Source, architecture: Architecture, dtype: torch.dtype) -> list[Entry]:
    """Every tensor of the directory, in the order of our names: experts of one matrix one after the other, so
    that a piece of a checkpoint is read once.
    """
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in model_tensors(Transformer(source.config)).items()}
    refuse_other_tensors(shapes, source)
    entries = []
    theirs = counterparts(architecture, shapes)
    for name, shape in shapes.items():
        if name not in theirs:
            _refuse_bias(source, name, shape, architecture)
            continue
        # A bias that decides between near ties stays exact.
        kept = torch.float32 if name.endswith(BALANCE) else dtype
        for index, other in enumerate(theirs[name].names):
            chosen = index if theirs[name].per_expert else None
            read = partial(_read, source, name, shape, chosen)
            entries.append(Entry(other, theirs[name].shape(shape), kept, read))
    return entries


def _read(source: Source, name: str, shape: tuple[int, ...], expert: int | None) -> Tensor:
    """A whole tensor, or one expert's part of it; zeros for a bias that the source does not keep."""
    if name not in source.shapes:
        return torch.zeros(shape)
    whole = tuple(slice(0, size) for size in shape)
    if expert is None:
        return source.read(name, whole)
    return source.read(name, (slice(expert, expert + 1), *whole[1:]))[0]


def _refuse_bias(source: Source, name: str, shape: tuple[int, ...], architecture: Architecture) -> None:
    """A tensor without a counterpart may be left out only where it does nothing."""
    if not name.endswith(BALANCE) or bool(_read(source, name, shape, None).any()):
        raise BadConfig(f"{architecture.name} has no place for {name}")


def _fresh(out: str) -> Path:
    """The folder to write, empty: new, or what an export that broke off had left is removed."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(folder.iterdir())
        foreign = [path.name for path in there if not _OUR_FILES.fullmatch(path.name) or path.is_dir()]
        if foreign:
            raise BadConfig(f"--out={out} already holds {foreign[0]}: name a new folder")
        for path in there:
            path.unlink()
    except OSError as error:
        raise BadConfig(f"--out={out} cannot be written: {error.strerror}") from error
    return folder


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()
