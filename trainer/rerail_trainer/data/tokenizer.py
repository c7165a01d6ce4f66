"""Text to tokens and back: bytes, built in, or any Hugging Face `tokenizer.json` (extra `text`). Torch-free.

What a document says never becomes a special token: a text that spells `<|endoftext|>` is encoded letter by
letter, unless the caller asks for `special`, as chat templates do.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rerail_trainer.failures import BadConfig

BYTES = "bytes"
BYTE_VOCAB = 257
END_OF_DOCUMENT = 256
"""Token of the byte tokenizer after each document; the 256 before it are the bytes."""
END_TEXT = "<|endoftext|>"
END_CANDIDATES = (END_TEXT, "</s>", "<|end_of_text|>", "<eos>")

TOKENIZER_FILE = "tokenizer.json"
COMPANIONS = ("tokenizer_config.json", "chat_template.jinja")
"""Files that stand beside a tokenizer.json and travel with it."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SENTENCE_SPACE = "\u2581"


class Tokenizer(Protocol):
    """Text to token ids below `vocab` and back; equal digests mean equal ids for every text."""

    name: str
    """`bytes`, or the path of the tokenizer.json."""
    vocab: int
    end: int
    """Id of the token after each document."""
    end_text: str
    """How that token is written."""
    digest: str

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`, without a first or last token of the tokenizer's own; `special`: the names of
        special tokens in it mean those tokens.
        """
        ...

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text`, special tokens among them, and the character of `text` at which each begins."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of many documents, without end tokens; uint32 [tokens] each."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are no text, and bytes that are no UTF-8 become U+FFFD."""
        ...

    def byte_lengths(self) -> NDArray[np.int32]:
        """UTF-8 bytes of text that each token stands for; int32 [vocab], 0 for special tokens."""
        ...


class ByteTokenizer:
    """One token per byte of UTF-8."""

    name, vocab, end, end_text = BYTES, BYTE_VOCAB, END_OF_DOCUMENT, END_TEXT
    digest = "bytes/1"

    def encode(self, text: str, special: bool = False) -> list[int]:
        if not special:
            return list(text.encode())
        return self.encode_with_starts(text)[0]

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        for index, piece in enumerate(text.split(END_TEXT)):
            if index:
                ids.append(END_OF_DOCUMENT)
                starts.append(at)
                at += len(END_TEXT)
            ids += piece.encode()
            starts += [at + place for place, letter in enumerate(piece) for _ in letter.encode()]
            at += len(piece)
        return ids, starts

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def byte_lengths(self) -> NDArray[np.int32]:
        lengths = np.ones(BYTE_VOCAB, dtype=np.int32)
        lengths[END_OF_DOCUMENT] = 0
        return lengths


class FileTokenizer:
    """A tokenizer.json, run by the `tokenizers` library."""

    def __init__(self, file: Path, end: str = "") -> None:
        self.name = str(file)
        try:
            text = file.read_bytes()
        except OSError as error:
            raise BadConfig(f"tokenizer {file} cannot be read: {error.strerror}") from error
        self.digest = hashlib.sha256(text).hexdigest()
        try:
            self._inner = import_tokenizers().Tokenizer.from_buffer(text)
            self._form: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise BadConfig(f"{file} is no tokenizer.json: {error}") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self.vocab = 1 + max(self._inner.get_vocab(True).values(), default=0)
        self.end_text = end or self._found_end(file)
        found = self._inner.token_to_id(self.end_text)
        if found is None:
            raise BadConfig(f"{file} has no token {self.end_text!r} to end documents with")
        self.end = int(found)

    def encode(self, text: str, special: bool = False) -> list[int]:
        self._inner.encode_special_tokens = not special
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        self._inner.encode_special_tokens = False
        encoded = self._inner.encode(text, add_special_tokens=False)
        return list(encoded.ids), [begin for begin, _ in encoded.offsets]

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        self._inner.encode_special_tokens = True
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(document.ids, dtype=np.uint32) for document in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def byte_lengths(self) -> NDArray[np.int32]:
        """Exact for byte-level BPE. With SentencePiece forms the space that they put before a text counts
        as one byte too many per document. BadConfig for forms in which tokens lose bytes of the text.
        """
        lengths = np.zeros(self.vocab, dtype=np.int32)
        measure = self._measure()
        for token, index in self._inner.get_vocab(False).items():
            lengths[index] = measure(token)
        for index, added in self._inner.get_added_tokens_decoder().items():
            lengths[index] = 0 if added.special else len(added.content.encode())
        return lengths

    def _measure(self) -> Any:
        form = json.dumps([self._form.get("pre_tokenizer"), self._form.get("decoder")])
        if '"ByteLevel"' in form:
            # Each byte is written as one character of the vocabulary's own alphabet.
            return len
        if '"Metaspace"' in form or '"ByteFallback"' in form or _SENTENCE_SPACE in form:
            return _sentence_bytes
        raise BadConfig(f"{self.name}: bytes per token are known for byte-level and SentencePiece forms only")

    def _found_end(self, file: Path) -> str:
        known = [name for name in END_CANDIDATES if self._inner.token_to_id(name) is not None]
        known = known or [name for name in [_configured_end(file)] if name]
        if not known:
            raise BadConfig(
                f"{file} has none of {', '.join(END_CANDIDATES)}: name its end-of-document token "
                "(prepare --end-token)"
            )
        return known[0]


def open_tokenizer(name: str, end: str = "") -> Tokenizer:
    """`bytes`, the path of a tokenizer.json, or a folder that holds one; `end` names the token after each
    document where it is none of END_CANDIDATES. BadConfig says what is missing.
    """
    if name == BYTES:
        return ByteTokenizer()
    path = Path(name)
    return FileTokenizer(path / TOKENIZER_FILE if path.is_dir() else path, end)


def import_tokenizers() -> Any:
    """The `tokenizers` library, or BadConfig that names the extra."""
    try:
        import tokenizers
    except ImportError as error:
        raise BadConfig(
            "a tokenizer.json needs the package tokenizers: pip install tokenizers "
            "(the tokenizer `bytes` needs none)"
        ) from error
    return tokenizers


def _sentence_bytes(token: str) -> int:
    return 1 if _BYTE_TOKEN.fullmatch(token) else len(token.replace(_SENTENCE_SPACE, " ").encode())


def _configured_end(file: Path) -> str:
    """The eos_token of the tokenizer_config.json beside `file`, or nothing."""
    beside = file.parent / "tokenizer_config.json"
    if not beside.is_file():
        return ""
    try:
        named = json.loads(beside.read_text(encoding="utf-8")).get("eos_token") or ""
    except ValueError as error:
        raise BadConfig(f"{beside} is not JSON: {error}") from error
    return str(named["content"] if isinstance(named, dict) else named)
