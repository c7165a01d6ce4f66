"""corpus.json: what `prepare` made, so that a training can tell whether it reads the same tokens again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rerail_api.contract import ExitCode
from rerail_trainer.config import canonical_json
from rerail_trainer.failures import BadConfig, TrainerExit

MANIFEST_NAME = "corpus.json"
FORMAT = "rerail-corpus/1"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Shard:
    """One file; `sha256` is of the whole file, header and all."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """Training or held-out part; `bytes` is the UTF-8 text of its documents."""

    shards: tuple[Shard, ...] = ()
    tokens: int = 0
    documents: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class TokenizerRecord:
    """`name` is `bytes`, or the tokenizer.json beside the manifest."""

    name: str
    digest: str
    vocab: int
    end: int
    end_text: str


@dataclass(frozen=True)
class CorpusManifest:
    tokenizer: TokenizerRecord
    train: Split
    held_out: Split
    settings: dict[str, Any]
    skipped: int = 0
    """Records and documents left out as invalid."""
    format: str = FORMAT
    digest: str = field(init=False)
    """Of all the above: equal for the same tokens, wherever and by however many workers they were made."""

    def __post_init__(self) -> None:
        body = {name: value for name, value in asdict_without_digest(self).items()}
        object.__setattr__(self, "digest", hashlib.sha256(canonical_json(body).encode()).hexdigest())

    def encode(self) -> bytes:
        """The text of corpus.json."""
        return (json.dumps({**asdict_without_digest(self), "digest": self.digest}, indent=1) + "\n").encode()


def asdict_without_digest(manifest: CorpusManifest) -> dict[str, Any]:
    """Everything that the digest covers."""
    names = ("format", "tokenizer", "settings", "train", "held_out", "skipped")
    tree: dict[str, Any] = {}
    for name in names:
        value = getattr(manifest, name)
        tree[name] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return tree


def open_manifest(folder: Path) -> CorpusManifest:
    """Raises BadConfig where there is none, and TrainerExit (bad data shard) where it was changed."""
    file = folder / MANIFEST_NAME
    try:
        tree = json.loads(file.read_bytes())
        manifest = CorpusManifest(
            TokenizerRecord(**tree["tokenizer"]),
            _split(tree["train"]),
            _split(tree["held_out"]),
            tree["settings"],
            tree["skipped"],
            tree["format"],
        )
    except OSError as error:
        raise BadConfig(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{file} is no manifest of a prepared corpus: {error}") from error
    if manifest.format != FORMAT or manifest.digest != tree.get("digest"):
        raise _damaged(f"{file} does not fit its own digest: it was changed or damaged; prepare it again")
    return manifest


def verify(folder: Path, told: Callable[[str], None] | None = None) -> int:
    """Reads every shard and the tokenizer against their digests; the number of files. TrainerExit (bad data
    shard) names the first that differs; `told` hears of each file that is right.
    """
    manifest = open_manifest(folder)
    owed = {shard.file: shard.sha256 for shard in (*manifest.train.shards, *manifest.held_out.shards)}
    if (folder / manifest.tokenizer.name).is_file():
        owed[manifest.tokenizer.name] = manifest.tokenizer.digest
    for name, digest in owed.items():
        if digest_of(folder / name) != digest:
            raise _damaged(f"{folder / name} is not what {MANIFEST_NAME} says: its sha256 differs")
        if told is not None:
            told(name)
    return len(owed)


def digest_of(file: Path) -> str:
    """SHA-256 (hex) of a file; TrainerExit (bad data shard) where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise _damaged(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _split(tree: dict[str, Any]) -> Split:
    shards = tuple(Shard(**shard) for shard in tree["shards"])
    return Split(shards, tree["tokens"], tree["documents"], tree["bytes"])


def _damaged(message: str) -> TrainerExit:
    return TrainerExit(ExitCode.BAD_DATA_SHARD, message)
