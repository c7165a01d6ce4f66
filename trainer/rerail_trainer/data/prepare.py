"""`prepare`: text files, JSON lines and parquet become token shards and a manifest.

In parallel, and safe to kill: the same command goes on where it stopped, and gives the same bytes as one that
nobody disturbed.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from rerail_trainer.commands import Words
from rerail_trainer.config import canonical_json
from rerail_trainer.failures import BadConfig

from . import bpe
from .assembly import Plan, assemble
from .bar import Bar
from .chat import open_template
from .encoding import Recipe, encode_all, records_of, sweep, write_whole
from .inputs import Input, Piece, Reading, chunks_of, find_inputs
from .manifest import MANIFEST_NAME, CorpusManifest, TokenizerRecord, verify
from .tokenizer import BYTES, COMPANIONS, TOKENIZER_FILE, open_tokenizer

DESCRIPTION = (
    "Makes token shards and corpus.json from raw text: text files, .jsonl (also .gz) and .parquet. "
    "Killed at any moment, the same command goes on where it stopped."
)
WORK = ".work"
PLAN = ".plan.json"
MOST_SHARD_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Order:
    """What the words of the command ask for."""

    inputs: list[str]
    out: Path
    recipe: Recipe
    train_bpe: int
    bpe_sample: int
    shard_tokens: int
    chunk_bytes: int
    workers: int


def main(words: Sequence[str]) -> int:
    """Runs the command; 0, or BadConfig / TrainerExit that say what is wrong in one line."""
    line = _parser().parse_args(list(words))
    if line.verify:
        files = verify(Path(line.verify), lambda name: _say(f"{name}: right"))
        _say(f"{line.verify}: all {files} files are what {MANIFEST_NAME} says")
        return 0
    order = _order(line)
    try:
        prepare(order)
    except KeyboardInterrupt:
        _say(f"\nstopped; the same command goes on from what lies in {order.out / WORK}")
        return 130
    except OSError as error:
        raise BadConfig(f"{error.filename or order.out}: {error.strerror}") from error
    return 0


def prepare(order: Order) -> CorpusManifest | None:
    """Makes the corpus; its manifest, or None where it is there already."""
    began = time.monotonic()
    inputs = find_inputs(order.inputs)
    plan = _plan(order, inputs)
    order.out.mkdir(parents=True, exist_ok=True)
    if (order.out / MANIFEST_NAME).exists():
        _compare(order.out / PLAN, plan, f"{order.out} holds another corpus")
        shutil.rmtree(order.out / WORK, ignore_errors=True)
        _say(f"{order.out} is prepared already: nothing to do")
        return None
    with _at_work(order.out) as work:
        if (order.out / PLAN).exists():
            _compare(order.out / PLAN, plan, f"{order.out} holds the beginning of another corpus")
        write_whole(order.out / PLAN, json.dumps(plan, indent=1).encode())
        sweep(work)
        chunks = chunks_of(inputs, order.chunk_bytes)
        recipe = _with_tokenizer(order, work, chunks)
        _encode(order, recipe, work, chunks)
        manifest = _assemble(order, recipe, work, len(chunks))
        _tokenizer_beside(order.out, recipe)
        write_whole(order.out / MANIFEST_NAME, manifest.encode())
    shutil.rmtree(order.out / WORK, ignore_errors=True)
    _summary(order, manifest, time.monotonic() - began)
    return manifest


def _encode(order: Order, recipe: Recipe, work: Path, chunks: list[tuple[Piece, ...]]) -> None:
    bar = Bar("encoding", sum(piece.weight for chunk in chunks for piece in chunk), "bytes")
    encode_all(work, recipe, chunks, order.workers, bar)
    bar.close()


def _assemble(order: Order, recipe: Recipe, work: Path, chunks: int) -> CorpusManifest:
    records = records_of(work, chunks)
    tokenizer = open_tokenizer(recipe.tokenizer, recipe.end)
    total = sum(count.tokens for record in records for count in record.counts.values())
    if total == 0:
        raise BadConfig(f"there is no document in {', '.join(order.inputs)}")
    plan = Plan(work, order.out, order.shard_tokens, recipe.token_type(tokenizer), recipe.reading.chat)
    bar = Bar("joining", total, "tokens")
    train, held_out = (assemble(plan, split, records, bar.add) for split in ("train", "held-out"))
    bar.close()
    name = BYTES if tokenizer.name == BYTES else TOKENIZER_FILE
    kind = TokenizerRecord(name, tokenizer.digest, tokenizer.vocab, tokenizer.end, tokenizer.end_text)
    skipped = sum(record.skipped for record in records)
    return CorpusManifest(kind, train, held_out, _settings(order), skipped)


def _with_tokenizer(order: Order, work: Path, chunks: list[tuple[Piece, ...]]) -> Recipe:
    """The recipe with the tokenizer that is to be used: given, or trained first."""
    if not order.train_bpe:
        return order.recipe
    path = work / TOKENIZER_FILE
    if not path.exists():
        _say(f"training a vocabulary of {order.train_bpe} tokens")
        path = bpe.train(work, (order.train_bpe, order.bpe_sample), order.recipe, chunks)
        if (found := open_tokenizer(str(path)).vocab) < order.train_bpe:
            _say(f"the text gives no more than {found} tokens")
    return Recipe(order.recipe.reading, str(path), order.recipe.end, order.recipe.held_out)


def _tokenizer_beside(out: Path, recipe: Recipe) -> None:
    """Copies tokenizer.json, and what belongs to it, into the corpus."""
    if recipe.tokenizer == BYTES:
        return
    source = Path(open_tokenizer(recipe.tokenizer, recipe.end).name)
    for name in COMPANIONS:
        if (source.parent / name).is_file():
            write_whole(out / name, (source.parent / name).read_bytes())
    write_whole(out / TOKENIZER_FILE, source.read_bytes())


@contextmanager
def _at_work(out: Path) -> Iterator[Path]:
    """The work folder, for one process at a time."""
    work = out / WORK
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadConfig(f"another `prepare` is at work in {out}") from error
        yield work


def _plan(order: Order, inputs: list[Input]) -> dict[str, Any]:
    """What must be equal for a second run to go on with the first one's work."""
    listing = hashlib.sha256(canonical_json([astuple(one) for one in inputs]).encode()).hexdigest()
    recipe = order.recipe
    tokenizer = (
        f"bpe/{order.train_bpe}/{order.bpe_sample}"
        if order.train_bpe
        else open_tokenizer(recipe.tokenizer, recipe.end).digest
    )
    return {**_settings(order), "tokenizer": tokenizer, "end_token": recipe.end, "inputs": listing}


def _settings(order: Order) -> dict[str, Any]:
    reading = asdict(order.recipe.reading)
    if order.recipe.reading.chat:
        reading["template"] = open_template(open_tokenizer(order.recipe.tokenizer, order.recipe.end)).digest
    sizes = {"shard_tokens": order.shard_tokens, "chunk_bytes": order.chunk_bytes}
    return {**reading, "held_out": order.recipe.held_out, **sizes}


def _compare(file: Path, plan: dict[str, Any], what: str) -> None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        found = {}
    differing = [name for name in plan if canonical_json(plan[name]) != canonical_json(found.get(name))]
    if differing:
        raise BadConfig(f"{what}: {', '.join(differing)} differ; choose another --out, or remove it")


def _summary(order: Order, manifest: CorpusManifest, seconds: float) -> None:
    for name, split in (("training", manifest.train), ("held out", manifest.held_out)):
        if split.tokens:
            _say(
                f"{name}: {split.documents:,} documents, {split.bytes:,} bytes of text, {split.tokens:,} "
                f"tokens ({split.bytes / split.tokens:.2f} bytes each) in {len(split.shards)} shards"
            )
    share = order.recipe.held_out
    if share and not manifest.held_out.tokens:
        _say(
            f"held out: none of {manifest.train.documents:,} documents at a share of {share:g}: `eval` will "
            "have nothing to measure by; take a larger --held-out and another --out"
        )
    if manifest.skipped:
        _say(f"{manifest.skipped:,} invalid documents or records were mended or left out")
    _say(f"{order.out}: prepared in {seconds:.1f} s, digest {manifest.digest[:12]}")


def _order(line: argparse.Namespace) -> Order:
    if not line.inputs or not line.out:
        raise BadConfig("prepare needs INPUT ... --out FOLDER, or --verify FOLDER; --help tells more")
    if not 0.0 <= line.held_out < 1.0:
        raise BadConfig(f"--held-out {line.held_out} must be at least 0 and below 1")
    if not 1 <= line.shard_tokens <= MOST_SHARD_TOKENS:
        raise BadConfig(f"--shard-tokens {line.shard_tokens} must lie between 1 and {MOST_SHARD_TOKENS}")
    for name in ("workers", "chunk_bytes", "bpe_sample"):
        if getattr(line, name) < 1:
            raise BadConfig(f"--{name.replace('_', '-')} {getattr(line, name)} must be at least 1")
    if line.train_bpe and line.chat:
        raise BadConfig(
            "--train-bpe learns from text: prepare that first, then --chat --tokenizer its folder"
        )
    if line.train_bpe and line.tokenizer != BYTES:
        raise BadConfig("--train-bpe and --tokenizer exclude each other")
    separator = line.separator.replace("\\n", "\n").replace("\\t", "\t")
    field = line.field or ("messages" if line.chat else "text")
    reading = Reading(field, line.chat, separator, line.invalid)
    return Order(
        line.inputs,
        Path(line.out),
        Recipe(reading, line.tokenizer, line.end_token, line.held_out),
        line.train_bpe,
        line.bpe_sample,
        line.shard_tokens,
        line.chunk_bytes,
        line.workers,
    )


def _parser() -> Words:
    parser = Words("prepare", DESCRIPTION)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="files, folders or glob patterns")
    add("--out", default="", metavar="FOLDER", help="where shards and corpus.json go")
    add("--tokenizer", default=BYTES, metavar="FILE", help="`bytes`, or a tokenizer.json")
    add("--end-token", default="", metavar="TOKEN", help="token after each document, where it is unusual")
    add("--train-bpe", type=int, default=0, metavar="VOCAB", help="train a BPE vocabulary of this size first")
    add("--bpe-sample", type=int, default=200_000_000, metavar="BYTES", help="on about so much of the text")
    add("--field", metavar="NAME", help="key of JSON lines, column of parquet; text, or messages with --chat")
    add("--chat", action="store_true", help="conversations for fine-tuning, by the tokenizer's chat template")
    add("--separator", default="", metavar="TEXT", help=r"between documents of a text file; \n is understood")
    add("--invalid", default="refuse", choices=("refuse", "replace", "skip"), help="bad UTF-8, bad records")
    add("--held-out", type=float, default=0.0, metavar="SHARE", help="of the documents, kept from training")
    add("--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens per shard")
    add("--chunk-bytes", type=int, default=8 << 20, metavar="N", help="input per piece of work")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add(
        "--verify", default="", metavar="FOLDER", help="check a prepared folder's files against their digests"
    )
    return parser


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
