"""A model ready to be asked: from a checkpoint folder, a step folder or a Hugging Face directory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from rerail_trainer.checkpoint.storage import is_url
from rerail_trainer.checkpoint.tensorfile import Damaged
from rerail_trainer.config import ModelConfig
from rerail_trainer.data.tokenizer import Tokenizer
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer

from .checkpoints import CheckpointSource, committed_steps, is_checkpoint, sound
from .config_json import CONFIG_FILE
from .hugging_face import HuggingFaceSource, is_hugging_face
from .source import Source, take_weights
from .tokenizer_files import tokenizer_beside, tokenizer_left_in


@dataclass(frozen=True)
class OpenModel:
    """A model in evaluation mode on one device, with the tokenizer that belongs to it where one is known."""

    config: ModelConfig
    model: Transformer
    tokenizer: Tokenizer | None
    origin: str
    """Where it came from, for people."""


def open_model(
    path: str, device: torch.device, dtype: torch.dtype | None = None, step: int | None = None
) -> OpenModel:
    """Opens the model at `path`; of a checkpoint folder the newest step whose bytes are sound, or `step`.

    dtype: of parameters; None means as stored. Nothing at `path` is changed. BadConfig says what is wrong.
    """
    if not is_url(path) and not Path(path).is_dir():
        raise BadConfig(f"{path} is no folder: name a checkpoint folder or a model directory")
    if is_hugging_face(path):
        if step is not None:
            raise BadConfig(f"{path} is a model directory, which has no step {step}")
        return _built(HuggingFaceSource(path), device, dtype, tokenizer_beside(path))
    if not is_checkpoint(path):
        raise BadConfig(f"{path} holds neither a committed checkpoint nor {CONFIG_FILE}")
    return _from_checkpoint(path, device, dtype, step)


def _from_checkpoint(
    path: str, device: torch.device, dtype: torch.dtype | None, step: int | None
) -> OpenModel:
    storage, steps = committed_steps(path, step)
    tokenizer = tokenizer_left_in(storage)
    for manifest in steps[:-1]:
        try:
            return _built(CheckpointSource(storage, manifest), device, dtype, tokenizer)
        except Damaged:
            continue  # the step before it may be sound
    last = steps[-1]
    return sound(lambda: _built(CheckpointSource(storage, last), device, dtype, tokenizer), path)


def _built(
    source: Source, device: torch.device, dtype: torch.dtype | None, tokenizer: Tokenizer | None
) -> OpenModel:
    with torch.device("meta"):
        model = Transformer(source.config)
    for parameter in model.parameters():
        # Buffers keep their dtype: they count, or belong to decisions taken in float32.
        parameter.data = parameter.data.to(dtype or source.dtype)
    model.to_empty(device=device)
    if source.config.tie:
        # to_empty gives each of the two names a tensor of its own
        model.head.weight = model.embedding.weight
    take_weights(model, source)
    model.requires_grad_(False)
    return OpenModel(source.config, model.eval(), tokenizer, source.origin)
