"""Bradley-Terry ratings from votes between models: maximum likelihood, with intervals.

P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley and Terry, 1952). The strengths s are told as Elo points,
400 / ln 10 times s, with mean 0 over the rated models. A tie is half a win for either side. numpy only.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rerail_trainer.failures import BadConfig

ELO_POINTS = 400.0 / math.log(10.0)
"""Points per unit of strength: 400 points are odds of ten to one."""
NORMAL_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
PHANTOM_GAMES = 0.5
"""Wins, and as many losses, against an average opponent that every model is given where votes alone have no
maximum of likelihood."""
_NEWTON_STEPS, _TOLERANCE = 100, 1e-10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """One judgement; `share` is a's part of the win: 1, 0 or, for a tie, 0.5."""

    a: str
    b: str
    share: float


@dataclass(frozen=True)
class Rating:
    """Points of one model, its 95 % interval against the mean of all, and what it did."""

    model: str
    points: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Odds:
    """How often `model` is expected to beat `other` (a tie is half a win), with a 95 % interval."""

    model: str
    other: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratings:
    """Models from the best to the worst. regularised: a model never lost or never won (or a group of models
    against the rest), so all were drawn towards the mean by PHANTOM_GAMES.
    """

    models: tuple[Rating, ...]
    odds: tuple[Odds, ...]
    regularised: bool
    votes: int


def rate(votes: Iterable[Vote]) -> Ratings:
    """The same ratings for the same votes in any order.

    Intervals are Wald's: from the inverse of the observed Fisher information at the maximum. With many ties
    they are wider than need be, and where `regularised` they are only a hint.
    Raises BadConfig when there is no vote, or models that no chain of votes connects.
    """
    votes = list(votes)
    names = sorted({name for vote in votes for name in (vote.a, vote.b)})
    wins = _win_matrix(votes, names)
    _refuse_islands(wins + wins.T, names)
    # The likelihood has a finite maximum exactly when, however the models are cut in two groups, each group
    # has beaten the other at least once (Ford, 1957).
    phantom = 0.0 if _reaches_all(wins > 0) else PHANTOM_GAMES
    strengths, information = _fit(wins, phantom)
    covariance = _centred_inverse(information, singular=phantom == 0.0)
    return _told(votes, names, strengths, covariance, phantom > 0)


def _win_matrix(votes: list[Vote], names: list[str]) -> Floats:
    """[i, j]: wins of i over j; float64 holds halves exactly, so the order of votes leaves no trace."""
    place = {name: index for index, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for vote in votes:
        if vote.a == vote.b:
            raise BadConfig(f"a vote between {vote.a!r} and itself says nothing")
        wins[place[vote.a], place[vote.b]] += vote.share
        wins[place[vote.b], place[vote.a]] += 1.0 - vote.share
    return wins


def _refuse_islands(games: Floats, names: list[str]) -> None:
    if not names:
        raise BadConfig("there is no vote to rate by")
    met = _closure(games > 0)[0]
    if not met.all():
        stranger = names[int(np.argmin(met))]
        raise BadConfig(f"{names[0]!r} and {stranger!r} were never compared, not even through other models")


def _closure(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[i, j]: whether a path leads from i to j."""
    paths = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges).bit_length()):
        paths = (paths.astype(np.float64) @ paths) > 0
    return paths


def _reaches_all(edges: NDArray[np.bool_]) -> bool:
    return bool(_closure(edges).all())


def _fit(wins: Floats, phantom: float) -> tuple[Floats, Floats]:
    """Strengths of mean 0 and the information matrix there, by Newton's method with halved steps."""
    strengths = np.zeros(len(wins))
    value = _log_likelihood(strengths, wins, phantom)
    for _ in range(_NEWTON_STEPS):
        gradient, information = _slopes(strengths, wins, phantom)
        if np.abs(gradient).max() < _TOLERANCE * max(1.0, wins.sum()):
            break
        step = _centred_inverse(information, singular=phantom == 0.0) @ gradient
        scale = 1.0
        # Far from the maximum a whole step can pass it; the function is concave, so a part of it never fails.
        while scale > 1e-9 and _log_likelihood(strengths + scale * step, wins, phantom) < value:
            scale /= 2
        strengths = strengths + scale * step
        value = _log_likelihood(strengths, wins, phantom)
    return strengths - strengths.mean(), _slopes(strengths, wins, phantom)[1]


def _log_likelihood(strengths: Floats, wins: Floats, phantom: float) -> float:
    ahead = strengths[:, None] - strengths[None, :]
    alone = np.logaddexp(0, strengths) + np.logaddexp(0, -strengths)
    return float(-(wins * np.logaddexp(0, -ahead)).sum() - phantom * alone.sum())


def _slopes(strengths: Floats, wins: Floats, phantom: float) -> tuple[Floats, Floats]:
    """First derivatives of the log-likelihood, and minus its second ones."""
    games = wins + wins.T
    expected = _logistic(strengths[:, None] - strengths[None, :])
    weight = games * expected * (1 - expected)
    gradient = (wins - games * expected).sum(axis=1)
    information = np.diag(weight.sum(axis=1)) - weight
    alone = _logistic(strengths)
    gradient += phantom * (1 - 2 * alone)
    information += np.diag(2 * phantom * alone * (1 - alone))
    return gradient, information


def _centred_inverse(information: Floats, singular: bool) -> Floats:
    """Covariance of strengths minus their mean. Without phantom games only differences are determined."""
    size = len(information)
    mean = np.full((size, size), 1.0 / size)
    if singular:
        inverse: Floats = np.linalg.inv(information + mean) - mean
        return inverse
    centre = np.eye(size) - mean
    covariance: Floats = centre @ np.linalg.inv(information) @ centre
    return covariance


def _logistic(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))


def _told(
    votes: list[Vote], names: list[str], strengths: Floats, covariance: Floats, regularised: bool
) -> Ratings:
    best_first = sorted(range(len(names)), key=lambda index: (-strengths[index], names[index]))
    models = []
    for index in best_first:
        name, spread = names[index], NORMAL_95 * math.sqrt(max(0.0, covariance[index, index]))
        own = [vote for vote in votes if name in (vote.a, vote.b)]
        shares = [vote.share if vote.a == name else 1 - vote.share for vote in own]
        points, radius = float(strengths[index] * ELO_POINTS), spread * ELO_POINTS
        counts = (sum(s > 0.5 for s in shares), sum(s == 0.5 for s in shares), sum(s < 0.5 for s in shares))
        models.append(Rating(name, points, points - radius, points + radius, *counts))
    odds = []
    for place, i in enumerate(best_first):
        for j in best_first[place + 1 :]:
            ahead = strengths[i] - strengths[j]
            variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            spread = NORMAL_95 * math.sqrt(max(0.0, variance))
            share, low, high = _logistic(np.array([ahead, ahead - spread, ahead + spread])).tolist()
            odds.append(Odds(names[i], names[j], share, low, high))
    return Ratings(tuple(models), tuple(odds), regularised, len(votes))
