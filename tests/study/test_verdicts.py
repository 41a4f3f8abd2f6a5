"""Differences in words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from abctune.core.records import LOSS
from abctune.study.comparison import Comparison, Difference, RowSet, costs_of
from abctune.study.recipes import Plan
from abctune.study.verdicts import forgetting, headlines, verdict_of
from abctune.study.wording import interval

INSTRUCT = RowSet("instruct", n=67, n_groups=67, n_supervised=4000)
OVERALL = RowSet("overall", n=140, n_groups=120, n_supervised=9000)
GENERAL = RowSet("general", n=60, n_groups=60, n_supervised=4000)
CLEAR = Difference(
    metric=LOSS,
    model="C",
    reference="B",
    on=INSTRUCT,
    about="recipes",
    value=-0.12,
    low=-0.15,
    high=-0.09,
    p=0.0001,
    p_holm=0.0018,
    by_replicate=(-0.11, -0.12, -0.13),
    replicate_sd=0.01,
    is_same=False,
    why_no_interval="there are too few independent conversations",
    is_within_margin=False,
    outcome="better",
    plan=None,
)
UNCLEAR = replace(
    CLEAR, value=-0.02, low=-0.05, high=0.01, p=0.2, p_holm=0.4, outcome="undecided", plan=Plan(5, 512, 930.0)
)


def study(*differences: Difference, replicates: int = 3) -> Comparison:
    """A comparison that holds these differences."""
    counts = {"base": 1} | {d.model: replicates for d in differences} | {d.reference: 1 for d in differences}
    return Comparison([OVERALL, INSTRUCT], [LOSS], [], list(differences), 0.02, counts)


def verdict(d: Difference):
    return verdict_of(d, study(d))


def test_a_winner_comes_with_its_interval_and_n():
    assert verdict(CLEAR).text == "C is better than B on instruct by 0.12 nats [0.09, 0.15], n = 67."
    assert verdict(CLEAR).short == "better by 0.12 [0.09, 0.15]"


def test_a_higher_loss_is_worse():
    found = verdict(replace(CLEAR, value=0.12, low=0.09, high=0.15, outcome="worse"))
    assert (found.outcome, found.short) == ("worse", "worse by 0.12 [0.09, 0.15]")


def test_an_interval_around_0_is_undecided_and_says_what_would_decide():
    found = verdict(UNCLEAR)
    assert found.outcome == "undecided"
    assert "undecided (C − B = −0.02 nats [−0.05, 0.01], n = 67)" in found.text
    assert (
        "About 5 replicates of each and 520 test rows would decide (80 % power, 16 min more)." in found.text
    )
    assert found.short == "undecided −0.02 [−0.05, 0.01]"


def test_the_correction_can_take_a_winner_away_and_the_sentence_says_so():
    found = verdict(replace(CLEAR, p_holm=0.07, outcome="undecided"))
    assert found.outcome == "undecided"
    assert "p = 0.07 after correction for 1 comparisons" in found.text


def test_no_winner_without_an_interval():
    found = verdict(replace(CLEAR, low=None, high=None, p=None, p_holm=None, outcome="undecided"))
    assert found.outcome == "undecided"
    assert (
        "undecided; there are too few independent conversations, so there is no interval (n = 67)"
        in found.text
    )


def test_equal_models_are_called_the_same():
    equal = replace(CLEAR, value=0.0, low=None, high=None, by_replicate=(0.0, 0.0, 0.0), is_same=True)
    found = verdict(replace(equal, outcome="equivalent"))
    assert (found.outcome, found.short) == ("equivalent", "the same")


def test_a_tie_in_total_is_not_called_the_same():
    tie = replace(UNCLEAR, value=0.0, low=-0.03, high=0.03, by_replicate=(0.0, 0.0, 0.0))
    assert verdict(tie).short == "undecided 0.00 [−0.03, 0.03]"


def test_where_one_was_trained_more_often_the_sentence_says_which_replicates_were_compared():
    unequal = replace(study(CLEAR), replicates={"base": 1, "B": 5, "C": 3})
    assert verdict_of(CLEAR, unequal).text.endswith("n = 67, the first 3 replicates of each.")


def test_groups_are_named_where_they_are_fewer_than_rows():
    assert verdict(replace(CLEAR, on=replace(INSTRUCT, n_groups=41))).text.endswith("n = 67 in 41 groups.")


def test_a_difference_next_to_nothing_asks_for_no_absurd_study():
    assert "No study of practical size" in verdict(replace(UNCLEAR, plan=None)).text


def test_equivalent_and_not_worse_name_the_margin():
    close = replace(UNCLEAR, value=0.0012, low=-0.0101, high=0.0125)
    found = verdict(replace(close, outcome="equivalent"))
    assert "C and B are equivalent on instruct within ±0.02 (C − B = 0.001 nats [−0.010, 0.013]" in found.text
    found = verdict(replace(close, outcome="not worse", low=-0.03))
    assert "C is not worse than B on instruct by more than 0.02" in found.text


def test_a_shown_difference_that_is_smaller_than_the_margin_says_so():
    small = replace(CLEAR, value=-0.007, low=-0.012, high=-0.003, is_within_margin=True)
    assert verdict(small).text.endswith("n = 67 (less than the margin of 0.02).")


def test_one_run_speaks_of_adapters_and_has_no_headline():
    once = replace(CLEAR, on=OVERALL, about="adapters", by_replicate=(-0.12,), replicate_sd=None)
    found = verdict_of(once, study(once, replicates=1))
    assert found.text == (
        "This adapter of C is better than this adapter of B overall by 0.12 nats [0.09, 0.15], n = 140 in 120 groups."
        " One run: nothing is said about the recipes."
    )
    (line,) = headlines([found], study(once, replicates=1))
    assert line.startswith("No headline on C and B: trained once")


@pytest.mark.parametrize(
    ("outcome", "numbers", "text"),
    [
        ("worse", (0.03, 0.02, 0.04), "C forgets: general text worse by 0.03 [0.02, 0.04] nats."),
        (
            "better",
            (-0.03, -0.04, -0.02),
            "C does not forget: general text better by 0.03 [0.02, 0.04] nats.",
        ),
        (
            "equivalent",
            (0.0, -0.01, 0.01),
            "C does not forget: general text equivalent to base (0.00 [−0.01, 0.01] nats).",
        ),
        (
            "undecided",
            (0.02, -0.01, 0.05),
            "C: whether it forgets is undecided (general text 0.02 [−0.01, 0.05] nats from base).",
        ),
    ],
)
def test_forgetting_is_a_sentence_on_general_text(outcome, numbers, text):
    value, low, high = numbers
    d = replace(CLEAR, reference="base", on=GENERAL, value=value, low=low, high=high, outcome=outcome)
    assert forgetting([verdict(d)]) == [text]
    in_accuracy = replace(d, metric=d.metric.model_copy(update={"name": "accuracy"}))
    assert forgetting([verdict(in_accuracy)]) == []  # a share is no loss in nats


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.12, 0.09, 0.15), "0.12 [0.09, 0.15]"),
        ((0.012, 0.0004, 0.0236), "0.0120 [0.0004, 0.0236]"),  # the bound next to 0 is not printed as 0
        ((-0.001, -0.4, 0.4), "0.00 [−0.40, 0.40]"),  # no −0.00
        ((0.0123456, 0.0121, 0.0125), "0.0123 [0.0121, 0.0125]"),
    ],
)
def test_decimals_follow_the_intervals_width(numbers, text):
    assert interval(*numbers) == text


def test_replicates_that_train_at_the_same_time_cost_their_share():
    def run_of(at_once: int) -> SimpleNamespace:
        runs = [SimpleNamespace(resources=SimpleNamespace(seconds=90.0))] * 3
        return SimpleNamespace(record=SimpleNamespace(replicates=runs, at_once=at_once))

    scored = SimpleNamespace(record=SimpleNamespace(resources=SimpleNamespace(seconds=50.0)), rows=[0] * 100)
    difference = SimpleNamespace(model="C", reference="base")
    costs = [
        costs_of(
            SimpleNamespace(trained={"C": run_of(at_once)}, models={"C": scored, "base": scored}), difference
        )
        for at_once in (1, 3)
    ]
    assert [cost.per_replicate for cost in costs] == [90.0, 30.0]
    assert [cost.per_row for cost in costs] == [1.0, 1.0]
