"""`compare`: two models on the same prompts for blind judging, and ratings from votes.

Torch-free until a model is opened.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rerail_trainer.commands import Words
from rerail_trainer.failures import BadConfig

from .asked import add_model_words, open_asked
from .lines import refuse_existing
from .pairs import Contest, key_file, read_votes, write_pairs
from .prompts import add_sampling_words, read_prompts
from .rating import Ratings, rate
from .sample_command import write


def main(words: Sequence[str]) -> int:
    """Either writes pairs to judge, or tells the ratings that votes give."""
    options = _words().parse_args(words)
    if options.votes:
        if options.models:
            raise BadConfig("compare --votes rates the models named in the votes: name no model besides")
        return _rate(options)
    if len(options.models) != 2 or not options.prompts or not options.out:
        raise BadConfig(
            "compare needs two models, --prompts FILE and --out PAIRS.jsonl; or --votes FILE.jsonl"
        )
    return _pair(options)


def _words() -> Words:
    words = Words("compare", "Puts two models head to head, or rates models by votes.")
    words.add_argument(
        "models", nargs="*", metavar="MODEL", help="two checkpoint folders or model directories"
    )
    words.add_argument(
        "--out", metavar="FILE", help="pairs to judge; which side is whose goes to *.key.jsonl"
    )
    words.add_argument("--votes", metavar="FILE", help='.jsonl: {"id", "vote"} or {"a", "b", "winner"}')
    words.add_argument("--key", metavar="FILE", default="", help="key file of the pairs, for votes by id")
    words.add_argument("--json", action="store_true", help="ratings as one JSON object")
    add_sampling_words(words)
    add_model_words(words)
    return words


def _pair(options: argparse.Namespace) -> int:
    for path in (options.out, key_file(options.out)):
        refuse_existing(path)
    prompts = read_prompts(options.prompts)
    names, texts = [], []
    for model in options.models:
        # One after the other: two large models need not fit side by side.
        asked = open_asked(model, options)
        names.append(asked.origin)
        texts.append([written.text for written in write(asked, prompts, options)])
        del asked
    contest = Contest((names[0], names[1]), prompts, (texts[0], texts[1]))
    if names[0] == names[1]:
        raise BadConfig(f"both models are {names[0]}: there is nothing to compare")
    write_pairs(contest, options.out, options.seed)
    sys.stdout.write(f"{len(prompts)} pairs in {options.out}, whose is whose in {key_file(options.out)}\n")
    return 0


def _rate(options: argparse.Namespace) -> int:
    ratings = rate(read_votes(options.votes, options.key))
    text = json.dumps(asdict(ratings), indent=1) + "\n" if options.json else _for_people(ratings)
    sys.stdout.write(text)
    return 0


def _for_people(ratings: Ratings) -> str:
    width = max(len(rating.model) for rating in ratings.models)
    lines = [f"{ratings.votes} votes; points with 95 % intervals, mean 0 (Bradley-Terry, Fisher information)"]
    lines += [
        f"{rating.model:<{width}}  {rating.points:+8.1f}  [{rating.low:+.1f}, {rating.high:+.1f}]"
        f"  {rating.wins} won, {rating.ties} tied, {rating.losses} lost"
        for rating in ratings.models
    ]
    lines += [
        f"{odds.model} beats {odds.other} in {odds.share:.1%} [{odds.low:.1%}, {odds.high:.1%}]"
        for odds in ratings.odds
        # Of many models only neighbours, else the list outgrows the table; --json has all.
        if len(ratings.models) <= 3 or _neighbours(ratings, odds.model, odds.other)
    ]
    if ratings.regularised:
        lines.append(
            "some models never lost, or never won, against the others, which alone would put them infinitely "
            "far apart: all were drawn towards the mean, and these intervals are a hint only"
        )
    return "\n".join(lines) + "\n"


def _neighbours(ratings: Ratings, one: str, other: str) -> bool:
    names = [rating.model for rating in ratings.models]
    return names.index(other) == names.index(one) + 1
