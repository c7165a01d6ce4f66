"""Conversations as text: the chat template of a tokenizer's folder (jinja2), or a built-in one.

A template's text is parsed for special tokens, so a beginning-of-text token appears exactly where the
template writes it and never twice. As in `transformers`, a message that spells a special token holds that
token.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rerail_trainer.failures import BadConfig

from .tokenizer import BYTES, Tokenizer

Message = dict[str, str]
"""`role` and `content`."""

ROLES = ("system", "user", "assistant")
ASSISTANT = "assistant"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)
"""Built in, for tokenizers without a template: an answer ends with the end-of-document token."""


@dataclass(frozen=True)
class Template:
    """Messages to text. `names` are the special tokens that a template may write."""

    text: str
    names: tuple[tuple[str, str], ...]
    origin: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.text, self.names]).encode()).hexdigest()

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of `messages`; with `prompt` up to where the assistant's next answer begins."""
        if self.text == TEMPLATE:
            return _built_in(messages, prompt, dict(self.names)["eos_token"])
        try:
            return self._compiled(messages=list(messages), add_generation_prompt=prompt, **dict(self.names))
        except Exception as error:  # a template raises what it likes, and jinja2 wraps none of it
            raise BadConfig(f"{self.origin} cannot render a conversation: {error}") from error

    @cached_property
    def _compiled(self) -> Callable[..., str]:
        return _compile(self.text, self.origin)


def open_template(tokenizer: Tokenizer) -> Template:
    """The template beside the tokenizer.json (chat_template.jinja, or in tokenizer_config.json), else
    TEMPLATE.
    """
    names = {"bos_token": "", "eos_token": tokenizer.end_text}
    if tokenizer.name == BYTES:
        return Template(TEMPLATE, tuple(names.items()), "the built-in chat template")
    folder = Path(tokenizer.name).parent
    config = _tokenizer_config(folder / "tokenizer_config.json")
    for key, value in config.items():
        named = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(named, str):
            names[key] = named
    file = folder / "chat_template.jinja"
    if file.is_file():
        return Template(file.read_text(encoding="utf-8"), tuple(names.items()), str(file))
    text = _default_of(config.get("chat_template"))
    if not text or text == TEMPLATE:
        return Template(
            TEMPLATE, tuple({**names, "eos_token": tokenizer.end_text}.items()), "the built-in chat template"
        )
    return Template(text, tuple(names.items()), str(folder / "tokenizer_config.json"))


def _built_in(messages: Sequence[Message], prompt: bool, end: str) -> str:
    """TEMPLATE, without jinja2."""
    parts = [
        f"<|{message['role']}|>\n{message['content']}{end if message['role'] == ASSISTANT else ''}\n"
        for message in messages
    ]
    return "".join(parts) + ("<|assistant|>\n" if prompt else "")


def _compile(text: str, origin: str) -> Callable[..., str]:
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise BadConfig(f"{origin} needs the package jinja2: pip install jinja2") from error

    class Generation(Extension):
        """{% generation %} marks answers for others; here it only has to be understood."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # As `transformers` sets it up: templates are written for these settings, and are not to be trusted.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    try:
        return environment.from_string(text).render
    except TemplateError as error:
        raise BadConfig(f"{origin} is no chat template: {error}") from error


def _tokenizer_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadConfig(f"{file} is not JSON: {error}") from error
    return tree if isinstance(tree, dict) else {}


def _default_of(templates: Any) -> str:
    """One template, or the one named `default` of several."""
    if isinstance(templates, list):
        templates = next((one["template"] for one in templates if one.get("name") == "default"), "")
    return templates if isinstance(templates, str) else ""
