"""Opens what a configuration trains on."""

from dataclasses import replace
from pathlib import Path

from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig

from .conversations import Conversations, open_conversations, open_prepared_conversations
from .corpus import open_corpus
from .manifest import MANIFEST_NAME, verify
from .mixture import Mixture, parse_mixture, shares
from .tokenizer import BYTES, Tokenizer, open_tokenizer
from .windows import Source


def open_source(config: Config) -> Source:
    """The corpus, mixture or conversations of `config.data`; BadConfig where the model's vocabulary is too
    small for it.
    """
    source = _source(config)
    if config.model.vocab < source.vocab:
        raise BadConfig(
            f"model.vocab={config.model.vocab} is too small for the tokenizer's {source.vocab} tokens"
        )
    return source


def _source(config: Config) -> Source:
    data = config.data
    if data.source == "chat":
        return _conversations(config)
    weighted = [] if data.source == "pydoc" or Path(data.path).exists() else parse_mixture(data.path)
    if not weighted:
        return open_corpus(data)
    corpora = tuple(open_corpus(replace(data, path=path)) for path, _ in weighted)
    names = tuple(path for path, _ in weighted)
    return Mixture(corpora, names, shares([weight for _, weight in weighted]))


def _conversations(config: Config) -> Conversations:
    """Those of a folder that `prepare --chat` made, or JSON lines, encoded now."""
    folder = Path(config.data.path)
    if not (folder / MANIFEST_NAME).is_file():
        return open_conversations(config.data.path, _chat_tokenizer(config))
    if config.data.verify == "digests":
        verify(folder)
    return open_prepared_conversations(folder)


def _chat_tokenizer(config: Config) -> Tokenizer:
    """The one that is named, else that of the weights to begin with, else bytes."""
    if config.data.tokenizer or not config.run.init_from:
        return open_tokenizer(config.data.tokenizer or BYTES)
    from rerail_trainer.weights.checkpoints import located
    from rerail_trainer.weights.tokenizer_files import tokenizer_beside, tokenizer_left_in

    folder = config.run.init_from
    found = tokenizer_left_in(located(folder)[0]) or tokenizer_beside(folder)
    if found is None:
        raise BadConfig(f"run.init_from={folder} has no tokenizer: name one with data.tokenizer")
    return found
