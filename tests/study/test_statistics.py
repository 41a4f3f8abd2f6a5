"""The intervals and tests: closed forms, simulation, and the classic mistakes they must not make."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from abctune.study import statistics
from abctune.study.statistics import (
    Stratum,
    bootstrap,
    cluster_sums,
    holm,
)


def simulated(rng, k, difference=0.0):
    """Conversations of very unequal length in groups of one to three that share a loss: what the test rows are like."""
    groups = np.repeat(np.arange(k), rng.integers(1, 4, k))
    tokens = np.maximum(1, rng.lognormal(4, 0.7, len(groups)).astype(int)).astype(float)
    shared = 0.3 * rng.standard_normal(k)[groups]
    loss = 2.4 + difference + shared + 0.4 * rng.standard_normal(len(groups)) - 0.1 * (np.log(tokens) - 4)
    return groups, tokens, (loss * tokens)[:, None]


def test_a_loss_is_the_sum_of_nll_over_the_sum_of_tokens():
    stratum = Stratum(np.array([1.0, 1, 1, 1, 96]), np.array([[4.0], [4], [4], [4], [96]]))
    assert bootstrap([stratum], np.random.default_rng(0), 99).value[0] == pytest.approx(112 / 100)


def test_with_equal_lengths_the_standard_error_is_that_of_a_mean():
    loss = np.random.default_rng(1).gamma(4, 0.5, 50)
    found = bootstrap([Stratum(np.full(50, 7.0), 7 * loss[:, None])], np.random.default_rng(0), 99)
    assert found.se[0] == pytest.approx(loss.std(ddof=1) / np.sqrt(50))


def test_with_many_conversations_the_interval_is_the_normal_one():
    groups, tokens, nll = simulated(np.random.default_rng(2), 4000)
    found = bootstrap([cluster_sums(groups, tokens, nll)], np.random.default_rng(0), 4000)
    assert (found.high - found.low)[0] / 2 == pytest.approx(1.96 * found.se[0], rel=0.03)


def test_the_spread_agrees_with_scipys_bootstrap():
    groups, tokens, nll = simulated(np.random.default_rng(3), 80)
    stratum = cluster_sums(groups, tokens, nll)
    scipys = scipy.stats.bootstrap(
        (stratum.sums[:, 0], stratum.tokens),
        lambda x, t, axis: x.sum(axis=axis) / t.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        rng=np.random.default_rng(0),
    )
    assert bootstrap([stratum], np.random.default_rng(0), 99).se[0] == pytest.approx(
        scipys.standard_error, rel=0.06
    )


def test_the_interval_holds_the_truth_in_93_to_97_of_100_data_sets():
    rng = np.random.default_rng(4)
    _, tokens, nll = simulated(np.random.default_rng(5), 400_000)
    truth, held = nll.sum() / tokens.sum(), 0
    for _ in range(1000):
        found = bootstrap([cluster_sums(*simulated(rng, 60))], rng, 399)
        held += found.low[0] <= truth <= found.high[0]
    assert 930 <= held <= 970


def test_without_a_difference_the_paired_test_rejects_in_3_to_7_of_100_data_sets():
    rng, rejected = np.random.default_rng(6), 0
    for _ in range(1000):
        groups, tokens, nll = simulated(rng, 60)
        other = (
            nll
            + (tokens * (0.05 * rng.standard_normal(60)[groups] + 0.1 * rng.standard_normal(len(groups))))[
                :, None
            ]
        )
        rejected += bootstrap([cluster_sums(groups, tokens, nll - other)], rng, 399).p[0] < 0.05
    assert 30 <= rejected <= 70


def test_rows_of_a_group_do_not_count_as_independent():
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(40), 10)
    nll = 100 * (2 + np.repeat(rng.standard_normal(40), 10))[:, None]
    tokens = np.full(400, 100.0)
    by_group = bootstrap([cluster_sums(groups, tokens, nll)], rng, 99).se[0]
    by_row = bootstrap([cluster_sums(np.arange(400), tokens, nll)], rng, 99).se[0]
    assert by_group == pytest.approx(np.sqrt(10) * by_row, rel=0.05)


def test_a_source_with_a_fixed_number_of_rows_adds_no_spread_by_its_share():
    """Two sources far apart in loss: the spread is the sources' own, the gap between them adds nothing."""
    rng = np.random.default_rng(8)
    a, b = (
        Stratum(np.full(100, 10.0), 10 * (level + 0.1 * rng.standard_normal((100, 1))))
        for level in (4.0, 2.0)
    )
    one, two, both = (bootstrap(strata, rng, 999) for strata in ([a], [b], [a, b]))
    assert both.value[0] == pytest.approx((one.value[0] + two.value[0]) / 2)
    assert both.se[0] == pytest.approx(np.hypot(one.se[0], two.se[0]) / 2)
    assert both.high[0] - both.low[0] < 0.05


def test_p_is_below_5_percent_just_where_the_interval_leaves_out_0():
    rng = np.random.default_rng(9)
    for difference in np.linspace(-0.2, 0.2, 41):
        groups, tokens, nll = simulated(rng, 30)
        found = bootstrap(
            [
                cluster_sums(
                    groups,
                    tokens,
                    nll - nll.sum() / tokens.sum() * tokens[:, None] + difference * tokens[:, None],
                )
            ],
            rng,
            399,
        )
        assert (found.p[0] < 0.05) == (not found.low[0] <= 0 <= found.high[0])


def test_models_that_agree_on_every_row_are_the_same_and_a_constant_gap_is_certain():
    tokens = np.arange(1.0, 31)
    sums = np.column_stack([0 * tokens, 0.05 * tokens])
    found = bootstrap([Stratum(tokens, sums)], np.random.default_rng(0), 999)
    assert (found.low[0], found.high[0], found.p[0]) == (0, 0, 1)
    assert (found.low[1], found.high[1], found.p[1]) == (pytest.approx(0.05), pytest.approx(0.05), 1 / 1000)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_too_few_groups_give_a_value_and_no_interval(k):
    found = bootstrap([Stratum(np.ones(k), np.arange(float(k))[:, None])], np.random.default_rng(0), 99)
    assert found.value[0] == pytest.approx((k - 1) / 2)
    assert np.isnan([found.low[0], found.high[0], found.p[0], found.se[0]]).all()


def test_the_chunk_size_bounds_memory_and_changes_nothing(monkeypatch):
    stratum = cluster_sums(*simulated(np.random.default_rng(10), 50))
    whole = bootstrap([stratum], np.random.default_rng(0), 300)
    monkeypatch.setattr(statistics, "CHUNK_ENTRIES", 700)
    assert bootstrap([stratum], np.random.default_rng(0), 300).low[0] == pytest.approx(
        whole.low[0], rel=1e-12
    )


def test_holm_by_hand():
    """Smallest first: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_without_bounds_counts_as_none():
    # Nearly all conversations score 0 (accuracy of a model that knows nothing): resamples without spread are common.
    estimates = statistics.Estimates(*(np.array([x]) for x in (0.01, 0.01, -np.inf, np.inf, 1.0)))
    assert np.isnan(statistics.t_df(estimates)).all()
