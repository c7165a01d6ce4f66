"""Chat data for fine-tuning: conversations packed into windows, in which only answers are targets."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.failures import BadConfig, TrainerExit

from .answers import BEGINS, COUNTED, TOKEN, encode_talk, messages_of
from .chat import Message, open_template
from .corpus import Corpus, files_of, open_prepared
from .order import window_of
from .packing import pack
from .shards import Tokens
from .tokenizer import Tokenizer
from .windows import IGNORED, Arrangement, Rows


@dataclass(frozen=True)
class Conversations:
    """Texts of flagged tokens, one after another in `corpus`; text i begins at borders[i]."""

    corpus: Corpus
    borders: NDArray[np.int64]
    answers: NDArray[np.int64]
    """Where an answer begins as a target, in order."""
    unanswered: int = 0
    """Conversations without an answer, left out."""

    @property
    def vocab(self) -> int:
        return self.corpus.vocab

    @property
    def digest(self) -> str:
        return self.corpus.digest

    @property
    def tokenizer(self) -> str:
        return self.corpus.tokenizer

    @property
    def end(self) -> int:
        return self.corpus.end

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
        # A text of n tokens is n - 1 inputs with their targets.
        whole = np.diff(source.borders) - 1
        lengths = np.minimum(whole, arrangement.seq_len)
        first = source.borders[:-1] + 1
        following = np.searchsorted(source.answers, first)
        answer = np.append(source.answers, source.borders[-1] + 1)[following]
        self._kept = np.flatnonzero(answer < first + lengths)
        if not len(self._kept):
            raise BadConfig(
                f"no conversation has an answer within model.seq_len={arrangement.seq_len} tokens"
            )
        self._begins, self._lengths = source.borders[self._kept], lengths[self._kept]
        self._packing = pack(self._lengths, arrangement.seq_len, arrangement.seed)
        self.count = self._packing.windows
        self.notes = self._told(int((whole > arrangement.seq_len).sum()))

    def rows(self, samples: NDArray[np.int64]) -> Rows:
        order = self._arrangement
        shape = (len(samples), order.seq_len)
        tokens = np.full((shape[0], shape[1] + 1), self._source.end, dtype=np.uint32)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int64)
        for row, window in enumerate(window_of(samples, self.count, order.seed, order.shuffle).tolist()):
            at = 0
            members = self._packing.of(window).tolist()
            for number, member in enumerate(members):
                length = int(self._lengths[member])
                flagged = self._source.corpus.view(int(self._begins[member]), length + 1)
                inner, plain = slice(at, at + length), flagged & TOKEN
                tokens[row, inner] = plain[:-1]
                np.copyto(targets[row, inner], plain[1:], where=flagged[1:] >= COUNTED)
                documents[row, inner] = number
                at += length
            documents[row, at:] = len(members)
        self._check(tokens)
        return Rows(tokens, targets, documents)

    def _check(self, tokens: Tokens) -> None:
        largest = int(tokens.max(initial=0))
        if largest >= self._arrangement.vocab:
            raise TrainerExit(
                ExitCode.BAD_DATA_SHARD,
                f"the conversations hold token {largest}, model.vocab is {self._arrangement.vocab}",
            )

    def _told(self, cut: int) -> tuple[str, ...]:
        total, kept = len(self._source.borders) - 1, len(self._kept)
        fill = self._lengths.sum() / (self.count * self._arrangement.seq_len)
        lines = [f"{kept:,} conversations in {self.count:,} windows, {fill:.1%} full"]
        if cut:
            lines.append(f"{cut:,} conversations are longer than model.seq_len and were cut")
        if left_out := self._source.unanswered + total - kept:
            lines.append(f"{left_out:,} conversations have no answer to learn and were left out")
        return tuple(lines)


def open_conversations(path: str, tokenizer: Tokenizer) -> Conversations:
    """Reads and encodes every conversation; BadConfig names the file and line of one that is none."""
    template = open_template(tokenizer)
    rows, unanswered = list[NDArray[np.uint32]](), 0
    for messages in _conversations(files_of(path)):
        texts = encode_talk(tokenizer, template, messages)
        rows += texts
        unanswered += not texts
    if not rows:
        raise BadConfig(f"no conversation in data.path={path} has an answer")
    flagged = np.concatenate(rows)
    digest = hashlib.sha256(f"chat/1 {tokenizer.end}\n".encode() + flagged.tobytes()).hexdigest()
    corpus = Corpus((flagged,), tokenizer.vocab, digest, (), tokenizer.name, tokenizer.end, tokenizer.digest)
    return found_in(corpus, unanswered)


def open_prepared_conversations(folder: Path, held_out: bool = False) -> Conversations:
    """Those that `prepare --chat` left in `folder`: nothing is encoded again, and ranks share the memory."""
    return found_in(open_prepared(folder, held_out, at_random=True, chat=True), 0)


def found_in(corpus: Corpus, unanswered: int) -> Conversations:
    """Finds where texts and answers begin, by the flags."""
    borders, answers = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    before = np.uint32(BEGINS)
    for start, part in zip(corpus.starts.tolist(), corpus.parts, strict=True):
        borders.append(np.flatnonzero(part & BEGINS) + start)
        previous = np.concatenate(([before], part[:-1]))
        # The second token of a text is its first target, whatever the first one is.
        fresh = (part >= COUNTED) & ((previous < COUNTED) | (previous & BEGINS > 0))
        answers.append(np.flatnonzero(fresh) + start)
        before = part[-1] if len(part) else before
    ends = np.array([corpus.tokens], dtype=np.int64)
    return Conversations(corpus, np.concatenate((*borders, ends)), np.concatenate(answers), unanswered)


def _conversations(files: list[Path]) -> Iterator[list[Message]]:
    for file in files:
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield _messages(line, f"{file}, line {number}")
        except OSError as error:
            raise BadConfig(f"{file} cannot be read: {error.strerror}") from error


def _messages(line: bytes, where: str) -> list[Message]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadConfig(f"{where}: no JSON ({error})") from error
    messages, problem = messages_of(record.get("messages") if isinstance(record, dict) else None)
    if problem:
        raise BadConfig(f"{where}: {problem}")
    return messages
