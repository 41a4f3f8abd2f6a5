"""Blind votes become strengths with intervals that hold what they promise."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.special import expit

from abctune.study.preferences import preference_headlines, preferences_between
from abctune.study.votes import VoteRecord

MODELS = ["base", "A", "B", "C"]


def votes_of(strengths: dict[str, float], n: int, rng: np.random.Generator, k: int = 2) -> list[VoteRecord]:
    """`n` votes among `k` models each, cast as Luce's choice model says."""
    votes = []
    for i in range(n):
        shown = [str(name) for name in rng.choice(list(strengths), k, replace=False)]
        p = np.exp([strengths[name] for name in shown])
        votes.append(
            VoteRecord(
                id=str(i), shown=tuple(shown), preferred=str(rng.choice(shown, p=p / p.sum())), trained={}
            )
        )
    return votes


def vote(*shown: str, preferred: str | None, trained: dict[str, str] | None = None) -> VoteRecord:
    return VoteRecord(id=str(id(shown)), shown=shown, preferred=preferred, trained=trained or {})


def test_a_pair_alone_has_the_share_that_was_counted():
    votes = [vote("base", "B", preferred="B")] * 60 + [vote("B", "base", preferred="base")] * 40
    [pair] = preferences_between(votes, ["base", "B"], {}).pairs
    assert pair.value == pytest.approx(0.6, abs=0.005) and pair.n == 100
    assert (pair.low, pair.high) == pytest.approx((0.50, 0.69), abs=0.01)


@pytest.mark.parametrize("k", [2, 4])
def test_intervals_hold_the_true_share_in_about_95_of_100_studies(k):
    truth = {"base": 0.0, "A": 0.5, "B": 1.0, "C": 1.0}
    rng, held, false, count = np.random.default_rng(1), 0, 0, 0
    for _ in range(60):
        found = preferences_between(votes_of(truth, 60, rng, k), MODELS, {})
        for pair in found.pairs:
            count += 1
            held += pair.low <= expit(truth[pair.model] - truth[pair.reference]) <= pair.high
            false += (pair.model, pair.reference) == ("C", "B") and pair.outcome != "undecided"
    assert held / count > 0.92
    assert false <= 5  # of 60: two equal models are called different in at most 5 %, but for chance


def test_a_model_that_wins_every_vote_has_finite_strength_and_few_votes_decide_nothing():
    found = preferences_between([vote("base", "B", preferred="B")] * 3, MODELS, {})
    assert found.pairs[0].outcome == "undecided" and found.strengths[1].high < 20
    assert preference_headlines(found) == [
        "In 3 blind votes, no published adapter is shown to be preferred to base or another."
    ]
    found = preferences_between([vote("base", "B", preferred="B")] * 30, MODELS, {})
    assert found.pairs[0].outcome == "preferred"
    assert preference_headlines(found)[0].startswith("People: this adapter of B is preferred to base in 9")


def test_a_share_is_of_the_votes_that_one_of_the_two_won_and_says_how_many_these_are():
    """Most people prefer a third answer; what they think of the other two, nobody knows."""
    votes = [vote("A", "B", "C", preferred="C")] * 160
    votes += [vote("A", "B", "C", preferred="B")] * 32 + [vote("A", "B", "C", preferred="A")] * 8
    found = preferences_between(votes, MODELS, {}).pair("B", "A")
    assert (found.n, found.shown) == (40, 200) and found.value == pytest.approx(0.8, abs=0.01)
    assert re.fullmatch(
        r"this adapter of B is preferred to this adapter of A in 80 % of the votes that one of the two won "
        r"\[\d\d, \d\d\], n = 40 of 200 with both\.",
        found.text,
    )
    # A tie among all three is a vote on every pair; a pair that no vote is between has no share.
    tied = [*votes, *[vote("A", "B", "C", preferred=None)] * 10]
    assert preferences_between(tied, MODELS, {}).pair("B", "A").n == 50
    assert preferences_between(votes[:160], MODELS, {}).pair("B", "A") is None


def test_ties_draw_together_and_who_was_not_shown_is_not_compared():
    ties = preferences_between([vote("A", "B", preferred=None)] * 50, MODELS, {})
    assert [s.model for s in ties.strengths] == ["A", "B"] and ties.strengths[0].tied == 50
    assert ties.pairs[0].value == pytest.approx(0.5) and ties.pairs[0].outcome == "undecided"
    assert ties.pair("B", "base") is None
    some = preferences_between(
        [vote("A", "B", preferred="B")] * 40 + [vote("A", "B", preferred=None)] * 40, MODELS, {}
    )
    assert some.pairs[0].value == pytest.approx(0.75, abs=0.01)  # a tie is half a vote for each


def test_votes_on_an_earlier_training_of_a_variant_do_not_count():
    old = vote("base", "B", preferred="B", trained={"B": "then"})
    new = vote("base", "B", preferred="base", trained={"B": "now"})
    found = preferences_between([old, new, new], MODELS, {"B": "now"})
    assert (found.votes, found.stale) == (2, 1) and found.strengths[1].won == 0
