"""Estimates with their metric."""

from __future__ import annotations

import numpy as np
import pytest

from abctune.core.records import LOSS
from abctune.study.comparison import RowSet, measured_difference, measured_value
from abctune.study.recipes import TestRows, compare_recipes
from stages.eval.metrics import accuracy

ON = RowSet("chat", n=60, n_groups=60, n_supervised=6000)


@pytest.fixture(scope="module")
def nearly_nothing_right():
    """Two variants of five replicates, of which one row in sixty has any token right, as on random weights."""
    rows = TestRows(np.full(60, 100.0), np.array([str(i) for i in range(60)]), np.full(60, "chat"))
    sums = {name: np.zeros((5, 60)) for name in ("A", "B")} | {"base": np.zeros((1, 60))}
    sums["A"][0, 3] = sums["A"][1, 7] = sums["B"][2, 9] = 1.0
    return compare_recipes(
        rows, sums, [("A", "base"), ("B", "A")], {"chat": ["chat"]}, margin=0.02, seed=1, resamples=500
    )


def test_the_interval_of_a_share_stays_where_a_share_can_be(nearly_nothing_right):
    found = nearly_nothing_right
    assert found.values[0].low < 0  # which no share is
    metric = accuracy.MEASURED.record
    values = [measured_value(metric, ON, v) for v in found.values if v.low is not None]
    assert all(0 <= v.low <= v.value <= v.high <= 1 for v in values)
    differences = [measured_difference(metric, ON, d, None) for d in found.differences]
    assert all(-1 <= d.low <= d.value <= d.high <= 1 for d in differences)


def test_a_loss_has_the_interval_that_was_estimated(nearly_nothing_right):
    for v in nearly_nothing_right.values:
        assert (measured_value(LOSS, ON, v).low, measured_value(LOSS, ON, v).high) == (v.low, v.high)
