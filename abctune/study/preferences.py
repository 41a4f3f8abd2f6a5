"""Which model people prefer: Bradley-Terry strengths from blind votes, with intervals.

A vote chooses one of the answers shown. The probability of each is taken as proportional to exp(its model's strength):
Bradley and Terry's model (1952) for two answers, Luce's (1959) for more. A tie counts as an equal share of a vote for
each. Strengths are relative; base is 0 where it was voted on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from abctune.core.params import BASE
from abctune.study import statistics
from abctune.study.comparison import pairs_of
from abctune.study.inputs import Study
from abctune.study.statistics import ALPHA
from abctune.study.votes import VoteRecord, training_id
from abctune.study.wording import adapter_of, number

# The standard deviation of a normal prior on strengths. It keeps them finite where one model won every vote; a few votes
# outweigh it, since two standard deviations let a model win 99.7 % of all rounds.
PRIOR_SD = 3.0

Floats = NDArray[np.float64]
Outcome = Literal["preferred", "not preferred", "undecided"]


@dataclass(frozen=True)
class Strength:
    """One model. `value` is a log-odds relative to `reference`, whose own interval has no width."""

    model: str
    reference: str
    n: int  # votes in which it was shown
    won: int
    tied: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Preference:
    """How often `model` is preferred in the votes that one of the two won; by chance alone, half the time.

    A vote that a third answer won says nothing about the other two.
    """

    model: str
    reference: str
    shown: int  # votes in which both were shown
    n: int  # of them, those that one of the two won, and ties
    value: float  # that share of these
    low: float
    high: float
    p: float  # two-sided, of "the share is one half"
    p_holm: float = 1.0

    @property
    def outcome(self) -> Outcome:
        """Shown only if the interval leaves out one half and Holm's correction allows it."""
        if self.low <= 0.5 <= self.high or self.p_holm >= ALPHA:
            return "undecided"
        return "preferred" if self.value > 0.5 else "not preferred"

    @property
    def text(self) -> str:
        """What people say, as a clause: `this adapter of B is preferred to base in 71 % of votes [55, 83], n = 31.`.

        Where third answers won some votes: `... of the votes that one of the two won [55, 83], n = 31 of 90 with both.`.
        """
        model, reference = adapter_of(self.model), adapter_of(self.reference)
        some = self.n < self.shown
        votes = "the votes that one of the two won" if some else "votes"
        share = f"{_percent(self.value)} % of {votes} [{_percent(self.low)}, {_percent(self.high)}]"
        size = f"n = {self.n:,}" + (f" of {self.shown:,} with both" if some else "")
        if self.outcome == "undecided":
            return f"{model} and {reference}: undecided, {self.model} is preferred in {share}, {size}."
        if self.outcome == "preferred":
            return f"{model} is preferred to {reference} in {share}, {size}."
        return f"{reference} is preferred to {model}, which wins {share}, {size}."


@dataclass(frozen=True)
class Preferences:
    """Strengths and pairwise preferences, and how many votes were about adapters of other studies."""

    votes: int
    stale: int
    strengths: tuple[Strength, ...] = ()
    pairs: tuple[Preference, ...] = ()

    def pair(self, model: str, reference: str) -> Preference | None:
        """One pair's preference; None where no vote is between the two."""
        return next((p for p in self.pairs if (p.model, p.reference) == (model, reference)), None)


def preferences_of(study: Study) -> Preferences:
    """What the votes say about the adapters that the study is about."""
    trained = {name: training_id(run.record) for name, run in study.trained.items()}
    return preferences_between(study.votes, list(study.models), trained)


def preferences_between(
    votes: Sequence[VoteRecord], models: Sequence[str], trained: dict[str, str]
) -> Preferences:
    """Strengths of the models and preferences of all pairs.

    Args:
        models: in the report's order.
        trained: by variant, `training_id` of the adapter that the report is about. Votes on others are left out.
    """
    ours = [vote for vote in votes if _is_on(vote, models, trained)]
    seen = [name for name in models if any(name in vote.shown for vote in ours)]
    if len(seen) < 2:
        return Preferences(len(ours), len(votes) - len(ours))
    value, covariance = fit(ours, seen)
    reference = BASE if BASE in seen else seen[0]
    strengths = [_strength(ours, name, reference, seen, value, covariance) for name in seen]
    pairs = [
        _preference(ours, *pair, seen, value, covariance) for pair in pairs_of(seen) if set(pair) <= set(seen)
    ]
    pairs = [pair for pair in pairs if pair.n]
    adjusted = statistics.holm([pair.p for pair in pairs])
    corrected = tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True))
    return Preferences(len(ours), len(votes) - len(ours), tuple(strengths), corrected)


def _is_on(vote: VoteRecord, models: Sequence[str], trained: dict[str, str]) -> bool:
    of_ours = all(name in models for name in vote.shown)
    return of_ours and all(trained.get(name) == was for name, was in vote.trained.items())


def fit(votes: Sequence[VoteRecord], models: Sequence[str]) -> tuple[Floats, Floats]:
    """The strengths of highest posterior density (mean 0) and their covariance, from the curvature there."""
    counts = Counter((tuple(sorted(map(models.index, vote.shown))), vote.preferred) for vote in votes)
    rounds = [
        (list(places), np.array([preferred in (models[place], None) for place in places], float), n)
        for (places, preferred), n in counts.items()
    ]

    def loss(strengths: Floats) -> tuple[float, Floats]:
        """Minus the log posterior of strengths (models,), up to a constant, and its gradient (models,)."""
        value, slope = (strengths**2).sum() / (2 * PRIOR_SD**2), strengths / PRIOR_SD**2
        for places, chosen, n in rounds:
            share = chosen / chosen.sum()  # a tie is shared by all its answers
            value -= n * share @ log_softmax(strengths[places])
            slope[places] += n * (softmax(strengths[places]) - share)
        return value, slope

    best = minimize(loss, np.zeros(len(models)), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    curvature = np.eye(len(models)) / PRIOR_SD**2
    for places, _, n in rounds:
        p = softmax(best[places])
        curvature[np.ix_(places, places)] += n * (np.diag(p) - np.outer(p, p))
    covariance = np.asarray(np.linalg.inv(curvature), dtype=np.float64)
    return best, covariance


def _contrast(seen: list[str], model: str, reference: str) -> Floats:
    wanted = np.zeros(len(seen))
    wanted[seen.index(model)] += 1
    wanted[seen.index(reference)] -= 1
    return wanted


def _difference(
    seen: list[str], model: str, reference: str, value: Floats, covariance: Floats
) -> tuple[float, float, float]:
    """The strengths' difference and the bounds of its interval."""
    wanted = _contrast(seen, model, reference)
    middle, sd = float(wanted @ value), float(np.sqrt(wanted @ covariance @ wanted))
    half = NormalDist().inv_cdf((1 + statistics.LEVEL) / 2) * sd
    return middle, middle - half, middle + half


def _strength(
    votes: Sequence[VoteRecord],
    name: str,
    reference: str,
    seen: list[str],
    value: Floats,
    covariance: Floats,
) -> Strength:
    shown = [vote for vote in votes if name in vote.shown]
    won = sum(vote.preferred == name for vote in shown)
    tied = sum(vote.preferred is None for vote in shown)
    bounds = _difference(seen, name, reference, value, covariance)
    return Strength(name, reference, len(shown), won, tied, *bounds)


def _preference(
    votes: Sequence[VoteRecord],
    model: str,
    reference: str,
    seen: list[str],
    value: Floats,
    covariance: Floats,
) -> Preference:
    both = [vote.preferred for vote in votes if model in vote.shown and reference in vote.shown]
    n = sum(preferred in (model, reference, None) for preferred in both)
    middle, low, high = _difference(seen, model, reference, value, covariance)
    sd = (high - low) / 2 / NormalDist().inv_cdf((1 + statistics.LEVEL) / 2)
    p = 2 * NormalDist().cdf(-abs(middle) / sd)
    share, low, high = (float(expit(x)) for x in (middle, low, high))
    return Preference(model, reference, len(both), n, share, low, high, p)


def preference_headlines(found: Preferences) -> list[str]:
    """A sentence per pair that is decided, or one that says none is; nothing without votes."""
    if not found.pairs:
        return []
    decided = [f"People: {pair.text}" for pair in found.pairs if pair.outcome != "undecided"]
    return decided or [
        f"In {found.votes:,} blind votes, no published adapter is shown to be preferred to base or another."
    ]


def _percent(share: float) -> str:
    return number(100 * share, 0)
