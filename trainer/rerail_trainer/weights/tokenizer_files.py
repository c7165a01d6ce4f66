"""The tokenizer that belongs to weights: left in the checkpoint folder by the training, found again by who
opens it, written into model directories.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rerail_trainer.checkpoint.storage import Storage, is_url
from rerail_trainer.data.chat import TEMPLATE, open_template
from rerail_trainer.data.tokenizer import (
    BYTES,
    COMPANIONS,
    END_OF_DOCUMENT,
    END_TEXT,
    TOKENIZER_FILE,
    Tokenizer,
    open_tokenizer,
)

from .writing import write_whole

RECORD = "TOKENIZER.json"
"""In a checkpoint folder: which tokenizer it is; a tokenizer.json and its companions lie beside it."""
SETTINGS_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


def leave_tokenizer(storage: Storage, name: str, end: int) -> None:
    """Puts the tokenizer `name` (`bytes`, or the path of a tokenizer.json) into the checkpoint folder, with
    the settings and the chat template that stand beside it. Durable; what is there already is not written.

    end: the token after each document. Needs no library.
    """
    files: dict[str, bytes] = {}
    end_text = ""
    if name != BYTES:
        beside = Path(name).parent
        files[TOKENIZER_FILE] = Path(name).read_bytes()
        files |= {other: (beside / other).read_bytes() for other in COMPANIONS if (beside / other).is_file()}
    record = {"name": BYTES if name == BYTES else TOKENIZER_FILE, "end_text": end_text}
    files[RECORD] = (json.dumps(record, indent=1) + "\n").encode()
    there = set(storage.names(""))
    for file, data in files.items():
        if file not in there or storage.read(file) != data:
            storage.replace(file, data)


def tokenizer_left_in(storage: Storage) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder; None where the training did not know it."""
    try:
        tree = json.loads(storage.read(RECORD))
    except FileNotFoundError:
        return None
    if tree["name"] == BYTES:
        return open_tokenizer(BYTES)
    folder = _fetched(storage) if is_url(storage.root) else Path(storage.root)
    return open_tokenizer(str(folder / TOKENIZER_FILE), tree["end_text"])


def _fetched(storage: Storage) -> Path:
    """A folder of this machine with the tokenizer's files: the library opens no URLs. One per content, so
    that repeated commands leave one.
    """
    there = set(storage.names(""))
    files = {name: storage.read(name) for name in (TOKENIZER_FILE, *COMPANIONS) if name in there}
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"rerail-tokenizers-{os.getuid()}", digest)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        write_whole(folder / name, data)
    return folder


def of_one_tokenizer(folder: str, name: str) -> bool:
    """Whether the tokenizer `name` is, byte for byte, that of the weights in `folder`, or those have none."""
    form, record = Path(folder, TOKENIZER_FILE), Path(folder, RECORD)
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["name"] == BYTES:
        return name == BYTES
    if not form.is_file():
        return True
    if name == BYTES:
        return bool(json.loads(form.read_text(encoding="utf-8")) == byte_level_form())
    return form.read_bytes() == Path(name).read_bytes()


def tokenizer_beside(folder: str) -> Tokenizer | None:
    """The tokenizer of a model directory; None where it has no tokenizer.json."""
    return open_tokenizer(folder) if Path(folder, TOKENIZER_FILE).is_file() else None


def ends_of(tokenizer: Tokenizer) -> int | list[int]:
    """The token at which a text ends; both, where an answer of a chat ends with another one."""
    eos = tokenizer.encode(dict(open_template(tokenizer).names)["eos_token"], special=True)
    return [*eos, tokenizer.end] if len(eos) == 1 and eos != [tokenizer.end] else tokenizer.end


def model_files(tokenizer: Tokenizer, seq_len: int, chats: bool = False) -> dict[str, bytes]:
    """Name -> content of the files by which `transformers.AutoTokenizer` knows this tokenizer.

    chats: the model was trained with the tokenizer's chat template, be it the built-in one.
    """
    if tokenizer.name == BYTES:
        files = {TOKENIZER_FILE: _json(byte_level_form())}
    else:
        path = Path(tokenizer.name)
        names = [TOKENIZER_FILE, *(other for other in COMPANIONS if (path.parent / other).is_file())]
        files = {other: (path.parent / other).read_bytes() for other in names}
        files[TOKENIZER_FILE] = path.read_bytes()
    if SETTINGS_FILE not in files:
        files[SETTINGS_FILE] = _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": tokenizer.end_text,
                "clean_up_tokenization_spaces": False,
                "model_max_length": seq_len,
            }
        )
    template = open_template(tokenizer).text
    if chats and template == TEMPLATE:
        files[TEMPLATE_FILE] = template.encode()
    return files


def byte_level_form() -> dict[str, Any]:
    """The byte tokenizer in the form of tokenizer.json: a BPE without merges, whose ids are the bytes."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": END_OF_DOCUMENT,
                "content": END_TEXT,
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(_byte_letters())},
            "merges": [],
        },
    }


def _text_of(form: bytes, token: int) -> str:
    """How the token is written in a tokenizer.json; empty if it is no added token."""
    added = json.loads(form).get("added_tokens") or []
    return next((str(entry["content"]) for entry in added if entry["id"] == token), "")


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2, Radford et al., 2019): itself
    where it can be printed, else one from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
