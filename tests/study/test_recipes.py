"""Verdicts about recipes: planted effects, planted nulls, and the moderated variance computed by hand."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from abctune.study.recipes import (
    Costs,
    TestRows,
    compare_recipes,
    holm_of_margins,
    what_would_decide,
)
from abctune.study.statistics import strata_of_sources
from abctune.study.variances import Prior, moderated, p_value, prior_of_variances, trigamma_inverse

SETS = {"overall": ("chat", "instruct"), "chat": ("chat",), "instruct": ("instruct",)}
PAIRS = [("B", "base"), ("C", "base"), ("C", "B")]


def study(seed=0, k=3, effect=0.0, training=0.005, n=90, rows=0.03):
    """Base, B and C on two sources of n/2 rows; C is worse than B by `effect`. Spreads are in nats per token."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(20, 120, n).astype(float)
    base = weights * (2.8 + 0.5 * rng.standard_normal(n))
    sources = np.repeat(["chat", "instruct"], n // 2)

    def scores(shift):
        own = shift + rows * rng.standard_normal(n)
        noise = np.stack([training * rng.standard_normal(k) for _ in ("chat", "instruct")], axis=1)
        return base + weights * (own + noise[:, (sources == "instruct").astype(int)])

    sums = {"base": base[None], "B": scores(-0.15), "C": scores(-0.15 + effect)}
    return TestRows(weights, np.arange(n) // 2 * 2, sources), sums


def compared(rows, sums, **options):
    return compare_recipes(
        rows, sums, PAIRS, SETS, **{"margin": 0.02, "seed": 1, "resamples": 999, **options}
    )


def test_a_planted_difference_of_0_05_nats_is_found_with_3_replicates():
    found = compared(*study(effect=0.05))
    for on in SETS:
        assert found.difference("C", "B", on).outcome == "worse"
        assert found.difference("C", "B", on).about == "recipes"
        assert found.difference("B", "base", on).outcome == "better"


def test_a_planted_null_is_found_in_at_most_5_of_100_studies():
    false = [
        any(
            d.outcome in ("better", "worse")
            for d in compared(*study(seed, training=0.02), resamples=299).differences[2::3]
        )
        for seed in range(200)
    ]
    assert sum(false) <= 10


def test_the_interval_holds_the_truth_in_93_to_97_of_100_studies():
    truth = {("B", "base"): -0.15, ("C", "base"): -0.15, ("C", "B"): 0.0}
    held = [
        d.low <= truth[d.model, d.reference] <= d.high
        for seed in range(300)
        for d in compared(*study(seed, training=0.01), resamples=299).differences
    ]
    assert 0.93 <= np.mean(held) <= 0.97


def test_two_replicates_that_agree_by_luck_do_not_make_a_difference_certain():
    """Of two trainings alone one in ten pairs is near enough to look like no spread at all."""
    false = 0
    for seed in range(300):
        rows, sums = study(seed, k=2, training=0.03, rows=0.03)
        alone = {"base": sums["base"], "B": sums["B"] + 0.15 * rows.weights}
        found = compare_recipes(rows, alone, [("B", "base")], SETS, margin=0.02, seed=1, resamples=199)
        false += any(d.outcome in ("better", "worse") for d in found.differences)
    assert false <= 15


def test_p_is_below_0_05_just_where_the_interval_leaves_out_0():
    for seed in range(40):
        for d in compared(*study(seed, effect=0.015, training=0.01), resamples=199).differences:
            assert (d.p < 0.05) == (not d.low <= 0 <= d.high)


def test_a_source_of_chance_that_is_next_to_nothing_changes_no_p():
    for distance in np.linspace(0.1, 8, 80):
        alone = p_value(distance, [(1.0, 40.0)])
        assert alone == pytest.approx(2 * stats.t.sf(distance, 40))
        for tiny in (1e-33, 1e-25, 1e-17):
            assert p_value(distance, [(1.0, 40.0), (tiny, 2.0)]) == pytest.approx(alone, rel=1e-6)


def test_a_p_next_to_0_overflows_nowhere():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < p_value(1e3, [(1.0, np.inf), (1e-6, 1.0)]) < 1e-5


def test_a_source_that_shared_groups_leave_one_of_its_own_still_has_an_interval():
    """29 of 30 first questions of instruct are chat's too, each with more rows there."""
    groups = np.concatenate([np.repeat(np.arange(30), 2), np.arange(1, 30), [99]])
    sources = np.repeat(["chat", "instruct"], [60, 30])
    members = strata_of_sources(groups, sources, ["chat", "instruct"])
    assert sorted(np.concatenate(members).tolist()) == list(range(90))
    assert all(len(np.unique(groups[m])) > 1 for m in members)


def test_a_group_with_rows_of_two_sources_counts_once():
    """Two sources with the same 30 first questions hold what 30 groups hold, not 60."""
    rng, n = np.random.default_rng(0), 60
    shift = 0.03 * np.tile(rng.standard_normal(30), 2)  # by first question
    sums = {"base": np.full((1, n), 300.0), "B": 300.0 + 100 * shift[None].repeat(3, axis=0)}
    apart, shared = (
        compare_recipes(
            TestRows(np.full(n, 100.0), groups, np.repeat(["chat", "instruct"], 30)),
            sums,
            [("B", "base")],
            SETS,
            margin=0.02,
            seed=1,
            resamples=299,
        ).difference("B", "base", "overall")
        for groups in (np.arange(n), np.arange(n) % 30)
    )
    assert (apart.n_groups, shared.n_groups) == (60, 30)
    assert shared.se_rows == pytest.approx(np.sqrt(2) * apart.se_rows, rel=0.02)


def test_equal_totals_of_different_rows_are_no_equality():
    rows, sums = study(k=1)
    turned = sums["B"].copy()
    turned[0, :2] += [1.0, -1.0]  # of one group
    turned[0, 2:5:2] += [1.0, -1.0]  # of two
    found = compared(rows, sums | {"C": turned}, margin=None)
    assert found.difference("C", "B", "overall").value == pytest.approx(0, abs=1e-12)
    assert not found.difference("C", "B", "overall").is_same
    assert found.difference("C", "B", "overall").outcome == "undecided"
    same = compared(rows, sums | {"C": sums["B"]}).difference("C", "B", "overall")
    assert (same.is_same, same.outcome) == (True, "equivalent")


def test_conversations_that_all_show_the_same_give_no_certainty():
    """Six of six rows right in one model and wrong in the other: no spread, so chance cannot be estimated."""
    rows = TestRows(np.ones(6), np.arange(6), np.repeat("chat", 6))
    sums = {"B": np.zeros((3, 6)), "C": np.ones((3, 6))}
    pairs, sets = [("C", "B")], {"chat": ("chat",)}
    found = compare_recipes(rows, sums, pairs, sets, margin=None, seed=1, fixed=(), lower_is_better=False)
    (difference,) = found.differences
    assert (difference.low, difference.p, difference.outcome) == (None, None, "undecided")


def test_without_a_margin_nothing_is_equivalent_or_not_worse():
    found = compared(*study(training=0.001, rows=0.005, n=300), margin=None)
    assert {d.outcome for d in found.differences} <= {"better", "worse", "undecided"}


def test_with_one_replicate_the_verdict_is_about_the_adapters():
    rows, sums = study(k=1, effect=0.05)
    difference = compared(rows, sums).difference("C", "B", "overall")
    assert difference.about == "adapters"
    assert difference.se_replicates == 0
    assert difference.replicate_sd is None


def test_a_model_with_one_replicate_makes_every_comparison_with_it_one_of_adapters():
    rows, sums = study()
    found = compared(rows, sums | {"C": sums["C"][:1]})
    assert found.difference("C", "B", "overall").about == "adapters"
    assert found.difference("C", "base", "overall").about == "adapters"
    assert found.difference("B", "base", "overall").about == "recipes"


def test_the_value_is_the_mean_over_replicates_of_sum_over_weight():
    rows, sums = study()
    found = compared(rows, sums)
    expected = (sums["C"].sum(axis=1) - sums["B"].sum(axis=1)) / rows.weights.sum()
    difference = found.difference("C", "B", "overall")
    assert difference.by_replicate == pytest.approx(expected)
    assert difference.value == pytest.approx(expected.mean())
    assert found.value("C", "overall").value == pytest.approx(sums["C"].sum() / 3 / rows.weights.sum())


def test_replicates_are_compared_in_pairs():
    """Noise that both models share, replicate by replicate, is no noise of their difference."""
    rows, sums = study(effect=0.05)
    common = 0.5 * rows.weights * np.array([[-1.0], [0], [1]])
    shaken = compared(rows, sums | {"B": sums["B"] + common, "C": sums["C"] + common})
    plain = compared(rows, sums)
    assert shaken.difference("C", "B", "chat").by_replicate == pytest.approx(
        plain.difference("C", "B", "chat").by_replicate
    )
    assert (
        shaken.difference("C", "B", "chat").replicate_sd
        < 0.1 * shaken.difference("C", "base", "chat").replicate_sd
    )


def test_where_numbers_of_replicates_differ_the_common_ones_are_compared():
    rows, sums = study(k=5)
    fewer = compared(rows, sums | {"C": sums["C"][:3]}).difference("C", "B", "chat")
    assert fewer.k == 3
    assert fewer.by_replicate == compared(rows, sums).difference("C", "B", "chat").by_replicate[:3]


def test_without_training_noise_the_interval_is_the_rows_alone():
    rows, sums = study(training=0.0)
    three = compared(rows, sums).difference("C", "B", "overall")
    one = compared(rows, {name: values[:1] for name, values in sums.items()}).difference("C", "B", "overall")
    assert three.se == pytest.approx(one.se, rel=1e-6)


def test_rows_are_not_counted_twice():
    """What one replicate and one row do together is in both spreads; it counts once."""
    rng, n, k = np.random.default_rng(3), 4000, 5
    rows = TestRows(np.ones(n), np.arange(n), np.repeat("chat", n))
    sums = {"base": np.zeros((1, n)), "B": rng.standard_normal((k, n))}
    found = compare_recipes(
        rows, sums, [("B", "base")], {"chat": ("chat",)}, margin=0.02, seed=1, resamples=299
    )
    assert found.differences[0].se_rows < 0.5 / np.sqrt(k * n)
    assert found.differences[0].interaction == pytest.approx(1 / n, rel=0.05)


def test_no_more_false_precision_than_three_degrees_of_freedom_from_the_prior():
    found = compared(*study(effect=0.05, k=6))
    assert all(prior.df <= 3 for priors in found.priors.values() for prior in priors)
    assert found.difference("C", "B", "chat").replicates_df <= 5 + 3


def test_the_prior_counts_for_a_third_of_the_variances_it_comes_from():
    """Two variants on two sources: 4 independent variances of 2 degrees of freedom, so 6 others, so 2 at most.

    The set's own prior counts for no more than its other variance.
    """
    for of_set, of_all in compared(*study()).priors.values():
        assert of_all.df <= 2 and of_set.df <= 2


def test_sources_on_which_trainings_agree_make_no_other_one_look_certain():
    """There is nothing to find on chat, where trainings differ five times as much as on the other two sources."""
    sources = np.repeat(["chat", "instruct", "other"], 30)
    sets = {"overall": ("chat", "instruct", "other")} | {source: (source,) for source in sources}
    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weights = rng.integers(20, 120, 90).astype(float)
        base = weights * (2.8 + 0.5 * rng.standard_normal(90))
        noise = {model: np.array([0.01, 0.002, 0.002]) * rng.standard_normal((3, 3)) for model in "BC"}
        sums = {"base": base[None]}
        sums |= {model: base + weights * np.repeat(own - 0.15, 30, axis=1) for model, own in noise.items()}
        rows = TestRows(weights, np.arange(90), sources)
        found = compare_recipes(rows, sums, PAIRS, sets, margin=0.02, seed=1, resamples=99)
        difference = found.difference("C", "B", "chat")
        missed += not difference.low <= 0 <= difference.high
    assert missed <= 17  # 10 are expected; more than 17 would be a chance of 1 in 100


def test_a_lone_variant_on_one_source_has_no_prior():
    rows, sums = study()
    found = compare_recipes(
        rows,
        {"base": sums["base"], "B": sums["B"]},
        [("B", "base")],
        {"chat": ("chat",)},
        margin=0.02,
        seed=1,
    )
    assert [prior.df for prior in found.priors["chat"]] == [0, 0]
    assert found.differences[0].replicates_df == 2


def test_the_moderated_variance_by_hand():
    """(prior df x prior + df x sample) / (sum of df): (3 x 2 + 2 x 7) / 5 = 4."""
    assert moderated(7.0, 2, Prior(2.0, 3.0)) == (4.0, 5.0)
    assert moderated(7.0, 2, Prior(2.0, 3.0), unit=2.0) == ((3 * 4 + 2 * 7) / 5, 5.0)
    assert moderated(7.0, 2, Prior(2.0, np.inf)) == (2.0, np.inf)
    assert moderated(7.0, 2, Prior(0.0, 0.0)) == (7.0, 2)


@pytest.mark.parametrize("x", [1e-4, 0.3, 1.0, 7.5, 1e4])
def test_trigamma_inverse(x):
    assert trigamma_inverse(float(polygamma(1, x))) == pytest.approx(x, rel=1e-8)


@pytest.mark.parametrize(("df", "variance"), [(3.0, 2.0), (8.0, 0.01)])
def test_the_prior_is_recovered_from_many_variances(df, variance):
    rng = np.random.default_rng(5)
    sample = variance * stats.f.rvs(4, df, size=40_000, random_state=rng)
    found = prior_of_variances(sample, np.full(len(sample), 4.0))
    assert found.df == pytest.approx(df, rel=0.05)
    assert found.variance == pytest.approx(variance, rel=0.03)


def test_the_prior_by_hand():
    """Smyth's equations where they have a closed solution: 2 degrees of freedom, trigamma(1) = π² / 6 from the data.

    log(variance) has variance π² / 3, of which π² / 6 is chance, so the prior's df is 2; digamma(1) cancels, so its variance is 1.
    """
    spread = np.pi / np.sqrt(3)
    found = prior_of_variances(np.exp([-spread, 0, spread]), np.full(3, 2.0))
    assert (found.variance, found.df) == (pytest.approx(1), pytest.approx(2))


def test_variances_no_more_different_than_chance_are_one_variance():
    found = prior_of_variances(np.array([1.0, 1.1, 0.9, 1.05]), np.full(4, 2.0))
    assert found.df == np.inf


def test_holm_of_margins_by_hand():
    """Two comparisons, at most one true hypothesis in each: factor 2 until both of one comparison are rejected."""
    p = np.array([[0.001, 0.004], [0.03, 0.9]])
    assert holm_of_margins(p).tolist() == [[0.002, 0.008], [0.03, 0.9]]


def test_recipes_closer_than_the_margin_are_equivalent():
    rows, sums = study(training=0.002, rows=0.01, n=300)
    assert compared(rows, sums).difference("C", "B", "overall").outcome == "equivalent"
    assert compared(rows, sums, margin=0.0).difference("C", "B", "overall").outcome == "undecided"


def test_a_higher_metric_that_is_better_turns_the_verdicts_round():
    rows, sums = study(effect=0.05)
    found = compared(rows, sums, lower_is_better=False)
    assert found.difference("C", "B", "overall").outcome == "better"
    assert found.difference("B", "base", "overall").outcome == "worse"


def test_what_would_decide_buys_what_is_cheap():
    rows, sums = study(effect=0.015, training=0.01)
    found = compared(rows, sums)
    difference = found.difference("C", "B", "overall")
    assert difference.outcome == "undecided"
    cheap_rows = what_would_decide(difference, 0.02, Costs(1000.0, 0.001), found.tested)
    cheap_replicates = what_would_decide(difference, 0.02, Costs(1.0, 1000.0), found.tested)
    assert cheap_rows.rows > cheap_replicates.rows
    assert cheap_rows.replicates < cheap_replicates.replicates
    assert cheap_rows.seconds > 0


def test_no_number_of_rows_decides_about_a_difference_that_only_replicates_can_settle():
    rows, sums = study(effect=0.015, training=0.01)
    found = compared(rows, sums)
    difference = replace(found.difference("C", "B", "overall"), about="adapters", value=0.0)
    assert what_would_decide(difference, 0.0, Costs(1.0, 1.0), found.tested) is None


def test_too_few_groups_give_a_value_and_no_verdict():
    rows, sums = study(n=6)
    difference = compared(rows, sums).difference("C", "B", "overall")
    assert difference.low is None
    assert difference.outcome == "undecided"


def test_sums_of_other_rows_are_refused():
    rows, sums = study()
    with pytest.raises(ValueError, match=r"sums of C have shape \(3, 89\), not \(replicates, 90\)"):
        compared(rows, sums | {"C": sums["C"][:, 1:]})
    with pytest.raises(ValueError, match=r"sums of base have shape \(3, 90\), not \(1, 90\)"):
        compared(rows, sums | {"base": sums["B"]})
