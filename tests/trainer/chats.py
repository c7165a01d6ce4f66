"""Conversations and chat templates for the tests."""

from pathlib import Path

from rerail_trainer.data import chat
from rerail_trainer.data.chat import Message, Template, open_template
from rerail_trainer.data.tokenizer import open_tokenizer

from . import vocabularies

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BEGINNING = "{{ bos_token }}" + CHATML
STRIPPING = CHATML.replace("message.content", "(message.content | trim)")
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Drops what was thought in earlier answers, as Qwen 3's does."""
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "built in": chat.TEMPLATE,
    "ChatML": CHATML,
    "with a beginning-of-text token": WITH_BEGINNING,
    "that strips messages": STRIPPING,
    "with generation marks": MARKED,
}
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat, in größter Ruhe."},
    {"role": "user", "content": "And the dog? "},
    {"role": "assistant", "content": "Beside it.\nAsleep."},
]


def tokenizer_in(folder: Path) -> Path:
    """A byte-level tokenizer with the marks of these templates; its folder."""
    return vocabularies.byte_level(folder / "tokenizer", MARKS).parent


def template_in(folder: Path, text: str) -> Template:
    vocabularies.with_config(
        folder / "tokenizer.json", bos_token="<s>", eos_token="<|im_end|>", chat_template=text
    )
    return open_template(open_tokenizer(str(folder)))
