"""A model directory of the Hugging Face layout as a source of weights."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer

from .config_json import CONFIG_FILE, read_config
from .names import Counterpart, counterparts
from .source import model_tensors
from .stored import StoredTensor, read_box, stored_tensors

_NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Ends of names that older files hold although they follow from config.json."""


class HuggingFaceSource:
    """config.json and safetensors files; only headers are read until a tensor is asked for."""

    chats = False
    """Nothing says so; a template that is there goes with the tokenizer."""

    def __init__(self, folder: str) -> None:
        self.origin = folder
        architecture, self.config = read_config(folder)
        with torch.device("meta"):
            ours = {name: tuple(t.shape) for name, t in model_tensors(Transformer(self.config)).items()}
        self._names = counterparts(architecture, ours)
        self._stored = stored_tensors(folder)
        self.shapes: Mapping[str, tuple[int, ...]] = self._shapes(ours)
        kinds = Counter(tensor.dtype for tensor in self._stored.values()).most_common(1)
        self.dtype = kinds[0][0] if kinds else torch.float32

    def _shapes(self, ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes by our names. What is missing has no entry; what has no name of ours keeps its own.

        BadConfig where the experts of a block are not complete or not alike.
        """
        shapes, used = {}, set[str]()
        for name, theirs in self._names.items():
            there = [self._stored[other] for other in theirs.names if other in self._stored]
            used.update(theirs.names)
            if theirs.per_expert and there:
                shapes[name] = (len(theirs.names), *self._expert_shape(theirs, ours[name][1:]))
            elif there:
                shapes[name] = there[0].shape
        left_over = set(self._stored) - used
        for other in left_over:
            tied_head = self.config.tie and other == "lm_head.weight"
            if not other.endswith(_NOT_WEIGHTS) and not tied_head:
                shapes[other] = self._stored[other].shape
        return shapes

    def _expert_shape(self, theirs: Counterpart, wanted: tuple[int, ...]) -> tuple[int, ...]:
        for other in theirs.names:
            if other not in self._stored:
                raise BadConfig(f"{self.origin} has no tensor {other}")
            if self._stored[other].shape != wanted:
                return self._stored[other].shape
        return wanted

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        theirs = self._names[name]
        if not theirs.per_expert:
            return read_box(self._stored[theirs.names[0]], region)
        # One at a time into the whole: together they may be the largest tensor of the model.
        chosen: list[StoredTensor] = [self._stored[other] for other in theirs.names[region[0]]]
        box = torch.empty([part.stop - part.start for part in region], dtype=chosen[0].dtype)
        for index, stored in enumerate(chosen):
            box[index].copy_(read_box(stored, region[1:]))
        return box


def is_hugging_face(path: str) -> bool:
    """Whether `path` is a model directory."""
    return Path(path, CONFIG_FILE).is_file()
