"""Held-out loss while training goes on: the same windows each time, shared out over all ranks.

Training does not notice: no generator is drawn from, no buffer of the model changes, dropout is off.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rerail_trainer.config import Config
from rerail_trainer.data.corpus import open_prepared
from rerail_trainer.data.feed import MicroBatch, share_of
from rerail_trainer.data.manifest import MANIFEST_NAME, open_manifest
from rerail_trainer.data.source import open_source
from rerail_trainer.data.tokenizer import open_tokenizer
from rerail_trainer.data.windows import Arrangement, Rows, Source
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import IGNORED
from rerail_trainer.parallel.layouts import Layout


@dataclass(frozen=True)
class Reading:
    """loss: nats per target, end tokens among them; bits_per_byte: all of that loss over the bytes of the
    text, None where bytes are not known or not all tokens are targets.
    """

    loss: float
    bits_per_byte: float | None


class Evaluation:
    """Holds this rank's windows in memory; `train.eval_sequences` of them, spread evenly over the held-out
    text, on all ranks together.
    """

    def __init__(self, config: Config, held_out: Source, layout: Layout, device: torch.device) -> None:
        """Raises BadConfig where `held_out` has not one window."""
        self._every, self._last = config.train.eval_every, config.train.steps
        self._layout, self._device = layout, device
        windows = held_out.windows(_in_order(config))
        count = min(config.train.eval_sequences, windows.count)
        chosen = np.arange(count, dtype=np.int64) * windows.count // count
        own = chosen[layout.data_rank :: layout.data_size]
        # As many passes on every rank, because with shards or experts elsewhere a pass takes all ranks; and
        # all of the shape of training, because compiled blocks are compiled again for another.
        size = share_of(config, layout.data_rank, layout.data_size).micro_batch
        rows = -(-count // (layout.data_size * size)) * size
        filled = np.resize(own if len(own) else chosen, rows)
        self._parts = _cut(windows.rows(filled), len(own), size)
        everything = windows.rows(chosen)
        self._targets = int((_targets(everything) != IGNORED).sum())
        self._bytes = _text_bytes(held_out, everything)

    def due(self, step: int) -> bool:
        """After every `train.eval_every` steps, and after the last."""
        return step % self._every == 0 or step == self._last

    def measure(self) -> Reading:
        """All ranks call it at the same step; all get the same reading."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        with self._layout.forward_only():
            for part in self._parts:
                documents = None if part.documents is None else part.documents.to(self._device)
                inputs, targets = part.inputs.to(self._device), part.targets.to(self._device)
                total += self._layout.loss(inputs, targets, documents)
        if dist.is_initialized():
            dist.all_reduce(total)
        nats = float(total)
        return Reading(nats / self._targets, nats / (math.log(2) * self._bytes) if self._bytes else None)


def held_out_of(config: Config, source: Source) -> Source | None:
    """What to evaluate a training on `source` on, or None where train.eval_every is 0.

    Conversations: the files that data.held_out names. Text: the held-out part of the prepared folder that
    data.held_out or else data.path names; all of a folder named by data.held_out that has no such part.
    Raises BadConfig that says how to come by held-out text.
    """
    if not config.train.eval_every:
        return None
    if config.data.source == "chat":
        if not config.data.held_out:
            raise BadConfig("train.eval_every needs conversations that are not trained on: data.held_out")
        return open_source(replace(config, data=replace(config.data, path=config.data.held_out)))
    path = config.data.held_out or config.data.path
    if not (Path(path) / MANIFEST_NAME).is_file():
        raise BadConfig(
            f"train.eval_every needs held-out text: {path or 'data.path'} is no folder that `prepare` made; "
            "make one with prepare --held-out and name it with data.held_out"
        )
    manifest = open_manifest(Path(path))
    if source.tokenizer and open_tokenizer(source.tokenizer).digest != manifest.tokenizer.digest:
        raise BadConfig(f"{path} was prepared with another tokenizer than the text to train on")
    if not manifest.held_out.tokens and not config.data.held_out:
        raise BadConfig(
            f"train.eval_every needs held-out text, and {path} was prepared without: prepare it with "
            "--held-out, or name another folder with data.held_out"
        )
    return open_prepared(Path(path), held_out=manifest.held_out.tokens > 0)


def _in_order(config: Config) -> Arrangement:
    model = config.model
    return Arrangement(model.seq_len, 0, False, config.data.document_mask, model.vocab)


def _targets(rows: Rows) -> Tensor:
    """int64 [rows, seq_len]; IGNORED where there is no loss."""
    return torch.from_numpy(rows.tokens[:, 1:].astype(np.int64) if rows.targets is None else rows.targets)


def _text_bytes(source: Source, rows: Rows) -> int:
    """Bytes of text that the targets stand for; 0 where nobody says."""
    if rows.targets is not None or not source.tokenizer:
        return 0
    try:
        lengths = open_tokenizer(source.tokenizer).byte_lengths()
    except BadConfig:
        return 0
    return int(lengths[rows.tokens[:, 1:]].sum())


def _cut(rows: Rows, counted: int, size: int) -> list[MicroBatch]:
    """Micro-batches of `size` of the rows, of which only the first `counted` have a loss."""
    inputs, targets = torch.from_numpy(rows.tokens[:, :-1].astype(np.int64)), _targets(rows).clone()
    targets[counted:] = IGNORED
    documents = None if rows.documents is None else torch.from_numpy(rows.documents)
    return [
        MicroBatch(
            inputs[begin : begin + size],
            targets[begin : begin + size],
            None if documents is None else documents[begin : begin + size],
        )
        for begin in range(0, len(inputs), size)
    ]
