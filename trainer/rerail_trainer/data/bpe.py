"""Trains a byte-level BPE vocabulary (Sennrich et al., 2016; over bytes as in GPT-2) on the inputs."""

import json
from collections.abc import Iterator
from pathlib import Path

from rerail_trainer.failures import BadConfig

from .chat import ROLES, TEMPLATE
from .encoding import Recipe, held_out, write_whole
from .inputs import Invalids, Piece, documents_of
from .tokenizer import END_TEXT, TOKENIZER_FILE, import_tokenizers

SPECIAL = (END_TEXT, *(f"<|{role}|>" for role in ROLES))
LEAST_VOCAB = 256 + len(SPECIAL)


def train(folder: Path, size: tuple[int, int], recipe: Recipe, chunks: list[tuple[Piece, ...]]) -> Path:
    """Writes tokenizer.json (and its tokenizer_config.json) into `folder` and gives its path.

    size: (tokens of the vocabulary, bytes of text to learn from). Learns from chunks spread evenly over the
    inputs and never from held-out documents. The same inputs give the same file.
    """
    vocab, sample_bytes = size
    if vocab < LEAST_VOCAB:
        raise BadConfig(f"--train-bpe {vocab} must be at least {LEAST_VOCAB}: the bytes and special tokens")
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(recipe, sampled(chunks, sample_bytes)), trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    write_whole(folder / "tokenizer_config.json", (json.dumps(config, indent=1) + "\n").encode())
    # Last: its presence says that both are there.
    write_whole(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())
    return folder / TOKENIZER_FILE


def sampled(chunks: list[tuple[Piece, ...]], sample_bytes: int) -> list[tuple[Piece, ...]]:
    """Chunks spread evenly, of about `sample_bytes` in all, and at least one."""
    total = sum(piece.weight for chunk in chunks for piece in chunk)
    wanted = min(len(chunks), max(1, -(-len(chunks) * sample_bytes // max(1, total))))
    return [chunks[index * len(chunks) // wanted] for index in range(wanted)]


def _texts(recipe: Recipe, chunks: list[tuple[Piece, ...]]) -> Iterator[str]:
    invalids = Invalids(recipe.reading.invalid)
    for chunk in chunks:
        for piece in chunk:
            for document in documents_of(piece, recipe.reading, invalids):
                if not held_out(document, recipe.held_out):
                    yield document.text
