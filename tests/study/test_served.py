"""What a format costs is concluded after correction for all variants and formats that were served."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from abctune.study.served import Served, judged_together, served_headlines

MARGIN = 0.02


def served(cost: float, se: float, df: float = 60, form: str = "4bit") -> Served:
    """One adapter on one format, with the interval and the p-value that belong to a cost and its standard error."""
    half = float(stdtrit(df, 0.975)) * se
    p = float(2 * stdtr(df, -abs(cost) / se))
    return Served("B", form, 80, 3.0, 3.0 + cost, cost, cost - half, cost + half, se, df, p, None)


def false_verdicts(true_cost: float, false: set[str], pairs: int = 6, studies: int = 700) -> float:
    """In what share of studies of so many adapters and formats, all of which cost the same, any verdict is false."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(studies):
        costs = true_cost + 0.004 * rng.standard_t(60, pairs)
        found += any(
            one.outcome in false for one in judged_together([served(c, 0.004) for c in costs], MARGIN)
        )
    return found / studies


@pytest.mark.parametrize(
    ("true_cost", "false"), [(MARGIN, {"equivalent"}), (-MARGIN, {"equivalent"}), (0.0, {"better", "worse"})]
)
def test_six_formats_are_falsely_called_equivalent_or_different_in_at_most_5_of_100_studies(true_cost, false):
    assert false_verdicts(true_cost, false) <= 0.055
    assert (
        false_verdicts(0.0, {"equivalent"}) > 0.9
    )  # a correction that never allows the word would be no use


def test_an_interval_within_the_margin_is_no_equivalence_where_many_were_tried():
    near = served(0.004, 0.0075)
    assert near.high < MARGIN
    (alone,) = judged_together([near], MARGIN)
    assert alone.outcome == "equivalent"
    first, *_ = judged_together([near, *[served(0.05, 0.02, form=f"q{i}") for i in range(5)]], MARGIN)
    assert first.outcome == "undecided"
    assert first.text.startswith("undecided: 0.0040 [−0.0110, 0.0190], p = 0.2")
    assert first.text.endswith(" after correction")


def test_a_format_that_changes_no_row_is_equivalent_and_one_without_interval_undecided():
    same = Served("B", "16bit", 80, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0, np.inf, 1.0, None)
    few = Served("B", "4bit", 3, 3.0, 3.0, 0.0, None, None, None, None, None, None)
    boundless = Served("B", "q8_0", 9, 3.0, 3.0, 0.0, None, None, 0.1, None, 0.5, None)
    found = judged_together([same, few, boundless], MARGIN)
    assert [one.outcome for one in found] == ["equivalent", "undecided", "undecided"]


def test_the_headline_is_about_the_adapter_that_was_served():
    (line,) = served_headlines(judged_together([served(0.001, 0.002)], MARGIN))
    assert line.startswith(
        "This adapter of B as served, compared with how it was judged (nats): 4bit equivalent"
    )
