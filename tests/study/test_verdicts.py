"""Differences in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abctune.study.comparison import Difference, RowSet
from abctune.study.verdicts import interval, verdict_of

INSTRUCT = RowSet("instruct", n=67, n_groups=67, n_supervised=4000)
CLEAR = Difference(
    "C",
    "B",
    INSTRUCT,
    -0.12,
    -0.15,
    -0.09,
    p=0.0001,
    se=0.015,
    p_holm=0.0018,
    detectable=0.055,
    n_needed=14.0,
)
UNCLEAR = replace(CLEAR, value=-0.02, low=-0.05, high=0.01, p=0.2, p_holm=0.4, n_needed=512.3)


def test_a_winner_comes_with_its_interval_and_n():
    verdict = verdict_of(CLEAR, 18)
    assert verdict.text == "C is better than B on instruct by 0.12 nats [0.09, 0.15], n = 67."
    assert verdict.short == "better by 0.12 [0.09, 0.15]"


def test_a_higher_loss_is_worse():
    verdict = verdict_of(replace(CLEAR, value=0.12, low=0.09, high=0.15), 18)
    assert (verdict.outcome, verdict.short) == ("worse", "worse by 0.12 [0.09, 0.15]")


def test_an_interval_around_0_is_not_shown_and_says_what_would_be_needed():
    verdict = verdict_of(UNCLEAR, 18)
    assert verdict.outcome == "not shown"
    assert "the interval contains 0 (C − B = −0.02 nats [−0.05, 0.01], n = 67)" in verdict.text
    assert "about n = 520 would be needed" in verdict.text
    assert verdict.short == "not shown −0.02 [−0.05, 0.01]"


def test_holms_correction_can_take_a_winner_away():
    verdict = verdict_of(replace(CLEAR, p_holm=0.07), 18)
    assert verdict.outcome == "not shown"
    assert "p = 0.07 after correction for 18 comparisons" in verdict.text


def test_no_winner_without_an_interval():
    verdict = verdict_of(replace(CLEAR, low=None, high=None, p=None, p_holm=None), 0)
    assert verdict.outcome == "not shown"
    assert "too few independent conversations for an interval (n = 67)" in verdict.text


def test_equal_models_are_called_the_same():
    verdict = verdict_of(replace(CLEAR, value=0.0, low=0.0, high=0.0, p=1.0, p_holm=1.0, n_needed=None), 18)
    assert (verdict.outcome, verdict.short) == ("not shown", "the same")


def test_groups_are_named_where_they_are_fewer_than_rows():
    assert verdict_of(replace(CLEAR, on=replace(INSTRUCT, n_groups=41)), 18).text.endswith(
        "n = 67 in 41 groups."
    )


def test_a_difference_next_to_nothing_asks_for_no_absurd_n():
    assert "no test set of sensible size" in verdict_of(replace(UNCLEAR, n_needed=3e9), 18).text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.12, 0.09, 0.15), "0.12 [0.09, 0.15]"),
        ((0.012, 0.0004, 0.0236), "0.0120 [0.0004, 0.0236]"),  # the bound beside 0 is not printed as 0
        ((-0.001, -0.4, 0.4), "0.00 [−0.40, 0.40]"),  # no −0.00
        ((0.0123456, 0.0121, 0.0125), "0.0123 [0.0121, 0.0125]"),
    ],
)
def test_decimals_follow_the_intervals_width(numbers, text):
    assert interval(*numbers) == text
