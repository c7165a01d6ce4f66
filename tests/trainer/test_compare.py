"""Votes become ratings with honest intervals, and pairs are judged blind."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from rerail_trainer.__main__ import main
from rerail_trainer.evaluate.pairs import Contest, read_votes, write_pairs
from rerail_trainer.evaluate.rating import ELO_POINTS, Ratings, Vote, rate
from rerail_trainer.failures import BadConfig


def wins(a: str, b: str, won: int, lost: int = 0, tied: int = 0) -> list[Vote]:
    return [Vote(a, b, 1.0)] * won + [Vote(a, b, 0.0)] * lost + [Vote(a, b, 0.5)] * tied


def points(ratings: Ratings) -> dict[str, float]:
    return {rating.model: rating.points for rating in ratings.models}


def test_three_wins_of_four_are_odds_of_three_to_one() -> None:
    ratings = rate(wins("a", "b", 3, 1))
    assert points(ratings) == pytest.approx({"a": 200 * math.log10(3), "b": -200 * math.log10(3)})
    assert ratings.odds[0].share == pytest.approx(0.75)
    assert not ratings.regularised


def test_a_chain_of_models_adds_up_its_odds() -> None:
    # On a chain every link is fitted exactly, so the ratings are known in closed form.
    ratings = rate([*wins("a", "b", 3, 1), *wins("b", "c", 4, 1)])
    a, b, c = (points(ratings)[name] for name in "abc")
    assert a - b == pytest.approx(400 * math.log10(3))
    assert b - c == pytest.approx(400 * math.log10(4))
    assert a + b + c == pytest.approx(0, abs=1e-6)
    assert [rating.model for rating in ratings.models] == ["a", "b", "c"]


def test_at_the_maximum_every_model_wins_as_often_as_expected() -> None:
    draw = np.random.default_rng(5)
    names = "abcdef"
    votes = [
        vote
        for one in range(6)
        for other in range(one + 1, 6)
        for vote in wins(names[one], names[other], *draw.integers(1, 30, 3).tolist())
    ]
    found = points(rate(votes))
    for name in names:
        own = [vote for vote in votes if name in (vote.a, vote.b)]
        won = sum(vote.share if vote.a == name else 1 - vote.share for vote in own)
        others = [vote.b if vote.a == name else vote.a for vote in own]
        expected = sum(1 / (1 + 10 ** ((found[other] - found[name]) / 400)) for other in others)
        assert won == pytest.approx(expected, rel=1e-6)


def test_two_ties_count_as_one_win_for_each() -> None:
    tied, shared = rate(wins("a", "b", 3, 1, tied=2)), rate(wins("a", "b", 4, 2))
    assert points(tied) == points(shared)
    assert [(r.wins, r.ties, r.losses) for r in tied.models] == [(3, 2, 1), (1, 2, 3)]


def test_the_order_of_votes_and_of_sides_leaves_no_trace() -> None:
    votes = [*wins("a", "b", 7, 3, 2), *wins("b", "c", 5, 4, 1), *wins("c", "a", 2, 6)]
    mixed = [Vote(v.b, v.a, 1 - v.share) if index % 2 else v for index, v in enumerate(votes)]
    random.Random(3).shuffle(mixed)
    assert rate(mixed) == rate(votes)


def test_a_model_that_never_lost_gets_a_finite_rating_and_it_is_said() -> None:
    ratings = rate([*wins("best", "b", 10), *wins("b", "c", 4, 2)])
    assert ratings.regularised
    assert ratings.models[0].model == "best"
    assert all(
        math.isfinite(x) for rating in ratings.models for x in (rating.points, rating.low, rating.high)
    )
    more = rate([*wins("best", "b", 100), *wins("b", "c", 4, 2)])
    assert more.models[0].points > ratings.models[0].points


def test_models_that_no_vote_connects_are_not_rated() -> None:
    with pytest.raises(BadConfig, match="'a' and 'c' were never compared"):
        rate([*wins("a", "b", 1, 1), *wins("c", "d", 1, 1)])
    with pytest.raises(BadConfig, match="no vote"):
        rate([])
    with pytest.raises(BadConfig, match="itself"):
        rate(wins("a", "a", 1))


def test_intervals_cover_the_truth_at_about_their_rate() -> None:
    draw, truth, games, runs = np.random.default_rng(0), np.array([0.8, 0.1, -0.2, -0.7]), 40, 250
    names, covered = "abcd", 0
    for _ in range(runs):
        votes = []
        for one in range(4):
            for other in range(one + 1, 4):
                won = int(draw.binomial(games, 1 / (1 + np.exp(truth[other] - truth[one]))))
                votes += wins(names[one], names[other], won, games - won)
        for rating in rate(votes).models:
            covered += rating.low <= truth[names.index(rating.model)] * ELO_POINTS <= rating.high
    # 1,000 intervals that depend on each other a little: 95 % within three standard errors of a good thousand.
    assert covered / (4 * runs) == pytest.approx(0.95, abs=0.025)


def test_the_judge_sees_no_names_and_the_key_gives_them_back(tmp_path: Path) -> None:
    pairs, contest = tmp_path / "pairs.jsonl", a_contest()
    write_pairs(contest, str(pairs), seed=1)
    shown = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert "old" not in pairs.read_text()
    assert {row["prompt"] for row in shown} == set(contest.prompts)
    assert len({row["left"].split()[0] for row in shown}) == 2, "both models stand on the left at times"
    # A judge who prefers what the new model wrote, whatever side it stands on.
    votes = tmp_path / "votes.jsonl"
    votes.write_text(
        "".join(
            json.dumps({"id": row["id"], "vote": "left" if row["left"].startswith("better") else "right"})
            + "\n"
            for row in shown
        )
    )
    read = read_votes(str(votes), str(tmp_path / "pairs.key.jsonl"))
    assert {(vote.a if vote.share else vote.b) for vote in read} == {"new"}


def test_sides_follow_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_pairs(a_contest(), str(tmp_path / f"{name}.jsonl"), seed)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_text() for name in "abc")
    assert a == b
    assert a != c


def a_contest() -> Contest:
    prompts = [f"prompt {number}" for number in range(20)]
    texts = ([f"worse {number}" for number in range(20)], [f"better {number}" for number in range(20)])
    return Contest(("old", "new"), prompts, texts)


BAD_VOTES = {
    "no JSON": ("{", "line 2 is not JSON"),
    "no side": ('{"id": 0, "vote": "up"}', "line 2: vote='up' must be left, right or tie"),
    "no winner": ('{"a": "x", "b": "y", "winner": "z"}', "line 2: winner='z' must be a, b or tie"),
    "no key": ('{"id": 0, "vote": "left"}', "line 2: a vote for a side needs the key file"),
    "no name": ('{"a": 3, "b": "y", "winner": "a"}', "line 2: 'a' must be text, not 3"),
    "a list": ("[]", "line 2 must be a JSON object"),
}


@pytest.mark.parametrize("case", BAD_VOTES)
def test_a_vote_that_cannot_be_read_is_named_by_its_line(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = tmp_path / "votes.jsonl"
    votes.write_text('{"a": "x", "b": "y", "winner": "tie"}\n' + BAD_VOTES[case][0] + "\n")
    assert main(["compare", "--votes", str(votes)]) == 64
    assert BAD_VOTES[case][1] in capsys.readouterr().err


def test_ratings_are_told_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = tmp_path / "votes.jsonl"
    rows = [{"a": "x", "b": "y", "winner": winner} for winner in ("a", "a", "x", "b", "tie", "tie")]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", "--votes", str(votes)]) == 0
    told = capsys.readouterr().out
    assert "x beats y in 66.7%" in told
    assert "3 won, 2 tied, 1 lost" in told
    assert main(["compare", "--votes", str(votes), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["model"] == "x"
