"""Chat data for fine-tuning: conversations as JSON lines, packed into windows; only answers are targets."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.failures import BadConfig, TrainerExit

from .chat import Message, answers, open_template
from .corpus import files_of
from .order import window_of
from .packing import pack
from .tokenizer import Tokenizer
from .windows import IGNORED, Arrangement, Rows


@dataclass(frozen=True)
class Conversations:
    """Texts as tokens, one after another; text i is tokens[borders[i] : borders[i + 1]]."""

    tokens: NDArray[np.uint32]
    counted: NDArray[np.bool_]
    """Whether the token belongs to an answer."""
    borders: NDArray[np.int64]
    vocab: int
    tokenizer: str
    end: int
    unanswered: int = 0
    """Conversations without an answer, left out."""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"chat/1 {self.end}\n".encode())
        for array in (self.tokens, self.counted, self.borders):
            digest.update(array.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def windows(self, arrangement: Arrangement) -> "PackedWindows":
        """Windows of whole conversations; BadConfig when no answer fits into one."""
        return PackedWindows(self, arrangement)


class PackedWindows:
    """Conversations packed once, by the seed; each epoch takes the windows in an order of its own.

    Attention stays inside a conversation, so which ones share a window changes no loss; what a sample holds
    stays a pure function of (data, seed, sample index).
    """

    every_target_counts = False

    def __init__(self, source: Conversations, arrangement: Arrangement) -> None:
        self._source, self._arrangement = source, arrangement
        if int(source.tokens.max(initial=0)) >= arrangement.vocab:
            raise BadConfig(
                f"model.vocab={arrangement.vocab} is too small for token {source.tokens.max()} of the data"
            )
        # A text of n tokens is n - 1 inputs with their targets.
        lengths = np.minimum(np.diff(source.borders) - 1, arrangement.seq_len)
        first = source.borders[:-1] + 1
        answered = np.concatenate(([0], np.cumsum(source.counted)))
        self._kept = np.flatnonzero(answered[first + lengths] > answered[first])
        if not len(self._kept):
            raise BadConfig(
                f"no conversation has an answer within model.seq_len={arrangement.seq_len} tokens"
            )
        self._lengths = lengths[self._kept]
        self._packing = pack(self._lengths, arrangement.seq_len, arrangement.seed)
        self.count = self._packing.windows
        self.notes = self._told(int((np.diff(source.borders) - 1 > arrangement.seq_len).sum()))

    def rows(self, samples: NDArray[np.int64]) -> Rows:
        order = self._arrangement
        shape = (len(samples), order.seq_len)
        tokens = np.full((shape[0], shape[1] + 1), self._source.end, dtype=np.uint32)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int64)
        for row, window in enumerate(window_of(samples, self.count, order.seed, order.shuffle).tolist()):
            at = number = 0
            for number, member in enumerate(self._packing.of(window).tolist()):
                begin, length = self._begin(member), int(self._lengths[member])
                inner = slice(at, at + length)
                tokens[row, inner] = self._source.tokens[begin : begin + length]
                following = slice(begin + 1, begin + 1 + length)
                np.copyto(
                    targets[row, inner],
                    self._source.tokens[following],
                    where=self._source.counted[following],
                )
                documents[row, inner] = number
                at += length
            documents[row, at:] = number + 1
        return Rows(tokens, targets, documents)

    def _begin(self, member: int) -> int:
        return int(self._source.borders[self._kept[member]])

    def _told(self, cut: int) -> tuple[str, ...]:
        total, kept = len(self._source.borders) - 1, len(self._kept)
        fill = self._lengths.sum() / (self.count * self._arrangement.seq_len)
        lines = [f"{kept:,} conversations in {self.count:,} windows, {fill:.1%} full"]
        if cut:
            lines.append(f"{cut:,} conversations are longer than model.seq_len and were cut")
        if self._source.unanswered or total - kept:
            left_out = self._source.unanswered + total - kept
            lines.append(f"{left_out:,} conversations have no answer to learn and were left out")
        return tuple(lines)


def open_conversations(path: str, tokenizer: Tokenizer) -> Conversations:
    """Reads and encodes every conversation; BadConfig names the file and line of one that is none."""
    template = open_template(tokenizer)
    rows, flags, unanswered = list[NDArray[np.uint32]](), list[NDArray[np.bool_]](), 0
    for messages in _conversations(files_of(path)):
        texts = answers(template, messages)
        unanswered += not texts
        for text, spans in texts:
            ids, counted = encode_answers(tokenizer, text, spans)
            rows.append(ids)
            flags.append(counted)
    if not rows:
        raise BadConfig(f"no conversation in data.path={path} has an answer")
    borders = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Conversations(
        np.concatenate(rows),
        np.concatenate(flags),
        borders,
        tokenizer.vocab,
        tokenizer.name,
        tokenizer.end,
        unanswered,
    )


def encode_answers(
    tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]]
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Tokens of a rendered conversation, and which of them begin inside a span of characters."""
    ids, starts = tokenizer.encode_with_starts(text)
    places = np.array(starts, dtype=np.int64)
    counted = np.zeros(len(ids), dtype=bool)
    for begin, end in spans:
        counted |= (places >= begin) & (places < end)
    return np.array(ids, dtype=np.uint32), counted


def _conversations(files: list[Path]) -> Iterator[list[Message]]:
    for file in files:
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield _messages(line, f"{file}, line {number}")
        except OSError as error:
            raise TrainerExit(ExitCode.BAD_DATA_SHARD, f"{file} cannot be read: {error.strerror}") from error


def _messages(line: bytes, where: str) -> list[Message]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadConfig(f"{where}: no JSON ({error})") from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadConfig(f'{where}: a conversation is {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise BadConfig(f"{where}: every message needs role and content, both text")
    return messages
