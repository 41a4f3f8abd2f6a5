"""Where the variance of a difference comes from: which rows were held out, and which trainings were run.

A variance from few replicates is moderated by the study's other ones (empirical Bayes; Smyth 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtr, stdtrit

from abctune.study.statistics import NO_SPREAD

# How far a prior is trusted: for at most 3 degrees of freedom, and the one of all sets for a third of those of the variances
# it comes from. A study has about a dozen such variances, too few to estimate how alike they are: with the prior as fitted,
# 11 to 17 % of simulated studies with 3 replicates had a false verdict (docs/statistics.md has the table).
#
# There are two priors, and the one that makes a difference less certain counts. One is of all sets: a variance that is
# small by luck is raised to what is usual. The other is of the set itself: sources differ in how much trainings differ on
# them, and what is usual elsewhere must not lower a variance. Twelve trainings of one recipe had a standard deviation of
# 0.0036 on chat and of 0.0007 on instructions; with the first prior alone, chance passed for a difference on chat in 50 of
# 500 comparisons of 3 with 3 (docs/statistics.md).
MAX_PRIOR_DF = 3.0
PRIOR_DF_SHARE = 1 / 3

LEAST_P = 1e-150  # a smaller p-value is given as this one; its t can still be squared

Floats = NDArray[np.float64]
Component = tuple[float, float]  # a variance of the mean, and its degrees of freedom


@dataclass(frozen=True)
class Parts:
    """One quantity on one set of rows and the sources of its variance, before the prior.

    A quantity is a model's value, or a pair's difference. `shared` is what another draw of test rows would change in all
    replicates alike, `interaction` what it would change in each by itself; `between` is how much the replicates differ,
    which the second is a part of.
    """

    by_replicate: Floats  # (k,)
    between: float | None  # variance of `by_replicate`; None with one replicate
    unit: float  # what `between` is expected to be, in multiples of the prior's variance
    shared: float  # variance from rows that all replicates have in common, so of their mean
    interaction: float  # variance from rows of each replicate's own; `between` includes it
    rows_df: (
        float  # degrees of freedom of `shared`; infinity: the normal distribution holds; NaN: too few groups
    )
    n: int  # rows
    n_groups: int
    is_same: bool  # of a difference: no row of any replicate differs


def parts_of(
    by_replicate: Floats,
    influences: Floats,
    *,
    unit: float,
    rows_df: float,
    n: int,
    n_groups: int,
    is_same: bool = False,
) -> Parts:
    """Split the variance of one quantity by what is random: which rows were held out, and which trainings were run.

    A replicate's value is truth + replicate + rows + (replicate x rows). The spread between replicates holds the second and
    the fourth; the rows' variance of the mean holds the third and the fourth. To count the fourth once, the third is taken
    from the covariance between replicates, as with two-way clustering (Cameron, Gelbach & Miller 2011).

    Args:
        by_replicate: the quantity's value, per replicate (k,).
        influences: each row cluster's influence on it (k x clusters); 0 where a replicate was not scored on the cluster.
        unit: what the variance between replicates is expected to be, in multiples of the prior's.
        rows_df: degrees of freedom of the variance from rows.
        n: rows.
        n_groups: clusters of rows.
        is_same: no row of any replicate differs.
    """
    k = len(by_replicate)
    covariance = influences @ influences.T
    if k == 1:
        return Parts(by_replicate, None, 0.0, float(covariance[0, 0]), 0.0, rows_df, n, n_groups, is_same)
    shared = float((covariance.sum() - np.trace(covariance)) / (k * (k - 1)))
    interaction = max(0.0, float(np.trace(covariance) / k) - shared)
    between = float(by_replicate.var(ddof=1))
    return Parts(by_replicate, between, unit, max(0.0, shared), interaction, rows_df, n, n_groups, is_same)


def from_replicates(parts: Parts, priors: Sequence[Prior]) -> tuple[float, float | None]:
    """Variance of the mean from which trainings were run, and its degrees of freedom; (0, None) with one replicate.

    Of several priors the largest variance counts, with the fewest degrees of freedom.
    """
    k = len(parts.by_replicate)
    if parts.between is None:
        return 0.0, None
    candidates = [moderated(parts.between, k - 1, prior, parts.unit) for prior in priors]
    between, df = max(variance for variance, _ in candidates), min(df for _, df in candidates)
    # What rows alone explain is a floor: by luck, few replicates may agree better than their rows allow.
    return max(between, parts.interaction) / k, df


@dataclass(frozen=True)
class Prior:
    """What the study's own variances between replicates say about one of them (Smyth 2004).

    A variance is drawn as `variance` * df / chi²(df). With df = 0 there is no prior, and a variance counts as it is.
    """

    variance: float  # for a difference with one trained member on a single source
    df: float


def fit_prior(parts: Sequence[Parts], trainings: Sequence[int], n_sources: int, share: float) -> Prior:
    """The prior that a study's own variances between replicates suggest, trusted within limits.

    A variance from three replicates is hardly known; that the study's others are usually of some size says more about
    it. The prior counts like further replicates of that usual variance.

    Args:
        parts: of all differences, or of those on one set. They overlap (A - base, B - base, B - A), so they hold less than they are many.
        trainings: the replicates of every model that was trained.
        n_sources: disjoint sets of rows: with the trainings, how many variances are independent.
        share: of the other independent variances' degrees of freedom, the most that the prior counts for.
    """
    known = [one for one in parts if one.between is not None and one.between > NO_SPREAD**2]
    if len(known) < 2:
        return Prior(0.0, 0.0)
    variances = np.array([one.between or 0.0 for one in known]) / [one.unit for one in known]
    df = np.array([len(one.by_replicate) - 1 for one in known], float)
    prior = prior_of_variances(variances, df)
    own = [k - 1 for k in trainings]
    others = max(0, n_sources * sum(own) - max(own))
    return replace(prior, df=min(prior.df, MAX_PRIOR_DF, share * others))


def priors_of(
    parts: Mapping[str, Sequence[Parts]], trainings: Sequence[int], n_sources: int
) -> dict[str, tuple[Prior, Prior]]:
    """For each set the two priors of its variances: of the set itself, and of all sets.

    The one that makes a difference less certain counts (`from_replicates`).

    Args:
        parts: by set, of all differences.
        trainings, n_sources: as for `fit_prior`.
    """
    of_all = fit_prior([one for some in parts.values() for one in some], trainings, n_sources, PRIOR_DF_SHARE)
    return {on: (fit_prior(some, trainings, 1, 1.0), of_all) for on, some in parts.items()}


def prior_of_variances(variances: Floats, df: Floats) -> Prior:
    """Fit a scaled F distribution to sample variances by the moments of their logarithms (Smyth 2004, section 6.2).

    limma's fitFDist without covariate. Where the variances differ by no more than chance, the result is their mean with
    infinite degrees of freedom.
    """
    e = np.log(variances) - digamma(df / 2) + np.log(df / 2)
    excess = float(e.var(ddof=1) - polygamma(1, df / 2).mean())
    if excess <= 0:
        return Prior(float(np.average(variances, weights=df)), np.inf)
    half = trigamma_inverse(excess)
    return Prior(float(np.exp(e.mean() + digamma(half) - np.log(half))), 2 * half)


def trigamma_inverse(y: float) -> float:
    """The x > 0 with trigamma(x) = y."""
    # trigamma(x) lies between 1/x and 1/x + 1/x², which brackets the solution.
    low, high = 1 / y, (1 + np.sqrt(1 + 4 * y)) / (2 * y)
    return float(brentq(lambda x: polygamma(1, x) - y, 0.99 * low, 1.01 * high))


def moderated(variance: float, df: float, prior: Prior, unit: float = 1.0) -> tuple[float, float]:
    """Posterior variance and its degrees of freedom: the mean of sample and prior, weighted by degrees of freedom."""
    if prior.df == 0:
        return variance, df
    if np.isinf(prior.df):
        return unit * prior.variance, np.inf
    return (prior.df * unit * prior.variance + df * variance) / (prior.df + df), prior.df + df


def margin_of_error(components: Sequence[Component], alpha: float) -> float:
    """Half the width of the 1 - alpha interval of a mean whose variance is a sum of independent ones.

    Each component's own margin, t times its standard error, joined as squares. The interval holds the truth at least as
    often as it says, whatever the true variances are (Banerjee 1960). Satterthwaite's approximation does not where one
    component has few degrees of freedom: replicates that agree by luck make it trust the rows alone.
    """
    return float(np.sqrt(sum(variance * stdtrit(df, alpha / 2) ** 2 for variance, df in components)))


def p_value(distance: float, components: Sequence[Component]) -> float:
    """The alpha whose interval has this half width: the two-sided p of "the truth is this far away"."""
    known = [one for one in components if one[0] > 0]
    z = distance / np.sqrt(sum(variance for variance, _ in known))
    degrees = [df for _, df in known]
    # With the most degrees of freedom for all components p would be smaller, with the fewest larger.
    low, high = (max(LEAST_P, float(2 * stdtr(df, -z))) for df in (max(degrees), min(degrees)))

    def excess(log_alpha: float) -> float:
        return margin_of_error(known, float(np.exp(log_alpha))) - distance

    if excess(np.log(low)) <= 0:  # but for rounding: the others are nothing next to it
        return low
    return high if excess(np.log(high)) >= 0 else float(np.exp(brentq(excess, np.log(low), np.log(high))))


def margin_p(worse: float, components: Sequence[Component], margin: float) -> tuple[float, float]:
    """The p-values of "worse by the margin or more" and of "better by the margin or more".

    Doubled one-sided p-values: below 0.05 just where the 95 % interval leaves that side out.

    Args:
        worse: the mean, in the direction that is worse.
    """
    p_worse, p_better = (
        p_value(distance, components) if distance > 0 else 1.0
        for distance in (margin - worse, margin + worse)
    )
    return p_worse, p_better
