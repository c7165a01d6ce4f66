"""Multiple-choice questions, as they stand in JSONL files, and how they are put to a model. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from rerail_trainer.failures import BadConfig

from .lines import Line, read_lines

TEMPLATE = "Question: {question}\nAnswer:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Item:
    """One question; `before` is what the line wants in front of it: its few_shot and context."""

    question: str
    choices: tuple[str, ...]
    answer: int
    before: str = ""
    category: str = ""


@dataclass(frozen=True)
class Shots:
    """How questions are put. letters: the choices are listed under the question as A., B., ... and these
    letters are scored, as MMLU is usually put; examples: `count` of them come solved before each question.
    """

    template: str = TEMPLATE
    letters: bool = False
    count: int = 0
    examples: Sequence[Item] = ()


def read_items(path: str) -> list[Item]:
    """Items of a JSONL file: question, choices, answer (index from 0, or letter), and if wanted context,
    few_shot, category or subject. BadConfig names file and line.
    """
    return [_item(line) for line in read_lines(path)]


def _item(line: Line) -> Item:
    choices, labels = line.values.get("choices"), None
    if isinstance(choices, dict):
        # {"text": [...], "label": [...]} is how ARC writes them.
        labels, choices = choices.get("label"), choices.get("text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise line.refuse("'choices' must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise line.refuse(f"{len(choices)} choices; there must be 2 to {len(LETTERS)}")
    answer = _answer(line, len(choices), labels)
    parts = [part for part in (line.text("few_shot", ""), line.text("context", "")) if part]
    category = line.text("category", line.text("subject", ""))
    return Item(line.text("question"), tuple(choices), answer, "\n".join(parts), category)


def _answer(line: Line, count: int, labels: object) -> int:
    value = line.values.get("answer", line.values.get("answerKey"))
    if isinstance(labels, list) and value in labels:
        return labels.index(value)
    index = -1
    if isinstance(value, str) and len(value) == 1 and value.isalpha():
        index = LETTERS.find(value.upper())
    elif isinstance(value, str) and value.isdecimal():
        index = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        index = value
    if not 0 <= index < count:
        raise line.refuse(f"'answer' is {value!r}; it must be an index from 0 to {count - 1}, or a letter")
    return index


def answers_of(item: Item, shots: Shots) -> tuple[str, ...]:
    """What is scored: the choices themselves, or the letters that stand for them."""
    return tuple(LETTERS[: len(item.choices)]) if shots.letters else item.choices


def prompt_of(item: Item, shots: Shots) -> str:
    """What stands before the answer: solved examples (of the item's category where there are such), what the
    item brings along, and the question.
    """
    alike = [shot for shot in shots.examples if shot.category == item.category] or list(shots.examples)
    # An item that is among the examples must not see its own answer.
    others = [shot for shot in alike if (shot.question, shot.choices) != (item.question, item.choices)]
    if len(others) < shots.count:
        raise BadConfig(f"--few-shot {shots.count}: only {len(others)} examples suit {item.question[:40]!r}")
    solved = [
        joined(_put(shot, shots), answers_of(shot, shots)[shot.answer]) for shot in others[: shots.count]
    ]
    return BETWEEN_SHOTS.join([*solved, _put(item, shots)])


def joined(context: str, answer: str) -> str:
    """Context and answer with one space between, whatever either side brings along; with none at the
    beginning or after a line break.
    """
    bare = context.rstrip(" ")
    space = "" if not bare or bare.endswith("\n") else " "
    return bare + space + answer.lstrip(" ")


def _put(item: Item, shots: Shots) -> str:
    question = item.question
    if shots.letters:
        listed = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
        question = "\n".join([question, *listed])
    text = shots.template.replace("{question}", question)
    return f"{item.before}\n{text}" if item.before else text
