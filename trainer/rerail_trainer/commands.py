"""The subcommands of the one program: their names, what they do, where their code lies. Torch-free."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT = "train"


@dataclass(frozen=True)
class Command:
    """`module` has a function main(words) -> exit code; it is imported only when it is asked for."""

    summary: str
    module: str


COMMANDS: dict[str, Command] = {}
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
