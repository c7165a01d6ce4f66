"""The subcommands of the one program: their names, what they do, where their code lies. Torch-free."""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from .failures import BadConfig

DEFAULT = "train"


@dataclass(frozen=True)
class Command:
    """`module` has a function main(words) -> exit code; it is imported only when it is asked for."""

    summary: str
    module: str


class Words(argparse.ArgumentParser):
    """The words of one subcommand; a wrong one is one line and exit code 64, like a wrong setting."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"python -m rerail_trainer {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise BadConfig(f"{self.prog.rsplit(' ', 1)[-1]}: {message}; --help tells more")


COMMANDS: dict[str, Command] = {
    "plan": Command(
        "parameters, memory, layout, time and checkpoints of a training, without a GPU",
        "rerail_trainer.planning.command",
    ),
    "plot": Command(
        "loss, tokens/s, MFU, stalls and restarts of runs, as a picture", "rerail_trainer.report.plot"
    ),
    "prepare": Command("raw text into token shards and a manifest", "rerail_trainer.data.prepare"),
    "eval": Command(
        "held-out loss, multiple choice, or lm-eval's tasks", "rerail_trainer.evaluate.eval_command"
    ),
    "checkpoint": Command(
        "lists, verifies or prunes the steps in a checkpoint folder", "rerail_trainer.checkpoint.command"
    ),
    "export": Command("a checkpoint as a Hugging Face model directory", "rerail_trainer.weights.export"),
    "sample": Command("text from a trained model", "rerail_trainer.evaluate.sample_command"),
    "compare": Command(
        "two models head to head, and ratings from votes", "rerail_trainer.evaluate.compare_command"
    ),
}
"""All but `train`, which is the entry itself."""


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """(command, its words): the first word where it is a name and no setting, else `train`."""
    if words and not words[0].startswith("-"):
        return words[0], list(words[1:])
    return DEFAULT, list(words)


def run(name: str, words: Sequence[str]) -> int:
    """Runs one of COMMANDS; its exit code."""
    main = importlib.import_module(COMMANDS[name].module).main
    return int(main(words))


def overview() -> str:
    """One line per command."""
    table = {DEFAULT: "pre-train or fine-tune a model (the default)"}
    table |= {name: command.summary for name, command in COMMANDS.items()}
    return "\n".join(f"  {name:<12} {summary}" for name, summary in table.items())
