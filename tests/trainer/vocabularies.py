"""Small tokenizers for the tests, made on the spot."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "the cat sat on the mat, and the dog sat beside the cat",
    "a job that loses a rank goes back on the rails from its last checkpoint",
    "für größere Wörter: naïve café, 日本語, emoji 🚂, tabs\tand\nlines\n\n  spaces",
] * 5


def byte_level(folder: Path, special: tuple[str, ...] = ("<|endoftext|>",), vocab: int = 400) -> Path:
    """A byte-level BPE as GPT-2's, Llama 3's and Qwen's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _saved(folder, tokenizer)


def sentence_piece(folder: Path) -> Path:
    """A BPE in the form of SentencePiece, as Llama 2's and Mistral's are: a space is part of the next word, and
    unknown letters fall back to bytes."""
    special = ("<unk>", "<s>", "</s>")
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: index for index, piece in enumerate(pieces)} | {"th": len(pieces), "the": len(pieces) + 1}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return _saved(folder, tokenizer)


def wide(folder: Path, vocab: int = 70_000) -> Path:
    """Byte-level without merges, and more tokens than two bytes can number; the end token is the last."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"<filler {index}>" for index in range(vocab - len(names) - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return _saved(folder, tokenizer)


def with_config(file: Path, **settings: object) -> Path:
    """Writes a tokenizer_config.json beside a tokenizer.json."""
    (file.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    return file


def _saved(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
