"""Two models' texts on the same prompts, shown blind; and the votes on them read back. Torch-free.

The file for the judge holds sides only; which model stands on which side is in a key file beside it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .lines import Line, read_lines, write_lines
from .rating import Vote

SHARES = {"left": 1.0, "right": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Contest:
    """What two models wrote; texts in the order of the prompts."""

    models: tuple[str, str]
    prompts: Sequence[str]
    texts: tuple[Sequence[str], Sequence[str]]


def key_file(path: str) -> str:
    """pairs.jsonl -> pairs.key.jsonl."""
    file = Path(path)
    return str(file.with_name(f"{file.stem}.key{file.suffix}"))


def write_pairs(contest: Contest, path: str, seed: int) -> None:
    """Writes {"id", "prompt", "left", "right"} to `path`, and {"id", "left", "right"} with the models' names
    to its key file. Sides are drawn by `seed`.
    """
    draw, pairs, keys = random.Random(seed), [], []  # noqa: S311 - a shuffle, not a secret
    first, second = contest.models
    for number, (prompt, one, two) in enumerate(zip(contest.prompts, *contest.texts, strict=True)):
        swapped = draw.random() < 0.5
        left, right = (two, one) if swapped else (one, two)
        pairs.append({"id": number, "prompt": prompt, "left": left, "right": right})
        names = (second, first) if swapped else (first, second)
        keys.append({"id": number, "left": names[0], "right": names[1]})
    # The key first: pairs without their key could never be counted.
    write_lines(key_file(path), keys)
    write_lines(path, pairs)


def read_votes(path: str, key: str = "") -> list[Vote]:
    """Votes of two forms, mixed at will: {"id", "vote": left|right|tie}, which needs the key file, and
    {"a", "b", "winner": a|b|tie} with models' names in a and b. BadConfig names the line.
    """
    sides = {str(line.values.get("id")): line for line in read_lines(key)} if key else {}
    return [_vote(line, sides) for line in read_lines(path)]


def _vote(line: Line, sides: dict[str, Line]) -> Vote:
    if "winner" in line.values:
        a, b, winner = line.text("a"), line.text("b"), line.text("winner")
        shares = {b: 0.0, a: 1.0, "b": 0.0, "a": 1.0, "tie": 0.5}
        if winner not in shares:
            raise line.refuse(f"winner={winner!r} must be a, b or tie")
        return Vote(a, b, shares[winner])
    vote = line.text("vote")
    if vote not in SHARES:
        raise line.refuse(f"vote={vote!r} must be left, right or tie")
    number = str(line.values.get("id"))
    if not sides:
        raise line.refuse("a vote for a side needs the key file: --key PAIRS.key.jsonl")
    if number not in sides:
        raise line.refuse(f"id {number} is not in the key file")
    return Vote(sides[number].text("left"), sides[number].text("right"), SHARES[vote])
