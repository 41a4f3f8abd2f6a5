"""Intervals and tests for a loss or a difference of losses. Pure functions; docs/statistics.md explains the method.

A loss is a ratio: the sum of nll over the sum of supervised tokens. What is random is which conversations
were held out, so whole conversations are resampled - whole groups of them where rows share text, because the
rows of a group rise and fall together (Cameron, Gelbach & Miller 2008, "Bootstrap-based improvements for
inference with clustered errors"). Two models' conversations are resampled together: the difference is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtridf
from scipy.stats import binom

from abctune.core.shares import LEVEL as LEVEL
from abctune.core.shares import wilson

ALPHA = 1 - LEVEL
RESAMPLES = 10_000
# With fewer clusters a resample too often holds one of them only and has no spread of its own.
MIN_CLUSTERS = 5
# Below this, in nats per token, a spread is rounding error: all clusters show the same difference.
NO_SPREAD = 1e-9
CHUNK_ENTRIES = 1 << 20  # resampling weights in memory at a time: 8 MiB, whatever the number of resamples

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stratum:
    """One source's clusters: supervised tokens (k) and, for each quantity, the sum of nll (k x quantities).

    A quantity is a model's nll, or the difference between two models' nll.
    """

    tokens: Floats
    sums: Floats


@dataclass(frozen=True)
class Estimates:
    """One entry per quantity. Without enough clusters all but `value` is NaN."""

    value: Floats
    se: Floats
    low: Floats
    high: Floats
    p: Floats  # two-sided, of "the value is 0"


def cluster_sums(clusters: NDArray[np.generic], tokens: Floats, nll: Floats) -> Stratum:
    """Add up the rows (n x quantities) of each cluster."""
    _, codes = np.unique(clusters, return_inverse=True)
    k = int(codes.max()) + 1
    sums = [np.bincount(codes, column, k).astype(float) for column in nll.T]
    return Stratum(np.bincount(codes, tokens, k).astype(float), np.stack(sums, axis=1))


def strata_of_sources(
    groups: NDArray[np.generic], sources: NDArray[np.generic], wanted: Sequence[str]
) -> list[NDArray[np.int64]]:
    """The rows of some sources by stratum, each as indices: a source's, so that how many rows it has is no chance.

    A group is drawn as a whole, so one with rows of several sources is in the stratum of that with most of its rows. Where
    that leaves a source one group, it goes to the largest stratum.

    Args:
        groups, sources: of all rows, (n,).
        wanted: the sources.
    """
    rows = np.flatnonzero(np.isin(sources, list(wanted)))
    names, of_source = np.unique(sources[rows], return_inverse=True)
    ids, of_group = np.unique(groups[rows], return_inverse=True)
    counts = np.zeros((len(ids), len(names)), int)
    np.add.at(counts, (of_group, of_source), 1)
    home = counts.argmax(axis=1)
    for source in range(len(names)):
        if (home == source).sum() == 1 < (counts[:, source] > 0).sum():
            home[home == source] = np.bincount(home).argmax()
    return [rows[home[of_group] == source] for source in np.unique(home)]


def bootstrap(strata: Sequence[Stratum], rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimates:
    """Ratio estimates with symmetric bootstrap-t intervals, resampled within each stratum.

    The interval is value ± q * se, where q is the 95 % quantile of |t*| = |value* - value| / se* over the
    resamples (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 12.5; symmetric: Hall 1988,
    "On symmetric bootstrap confidence intervals"). With 48 to 67 clusters the plain percentile
    interval held the truth in 90 to 94 % of simulated sets, this one in 92 to 96 %.
    The p-value is the share of |t*| at or above |value| / se, so it is below ALPHA just where the
    interval leaves out 0; the observed set counts as one resample, so it is never 0 (Phipson & Smyth 2010).
    """
    total_tokens = sum(stratum.tokens.sum() for stratum in strata)
    value = np.sum([stratum.sums.sum(axis=0) for stratum in strata], axis=0) / total_tokens
    if (
        sum(len(stratum.tokens) for stratum in strata) < MIN_CLUSTERS
        or min(len(s.tokens) for s in strata) < 2
    ):
        unknown = np.full_like(value, np.nan)
        return Estimates(value, unknown, unknown, unknown, unknown)
    se = _standard_error(strata, value)
    t = _resampled_t(strata, value, rng, resamples)
    # The ceil((B + 1) * LEVEL)-th smallest, as for a p-value that counts the observed set.
    rank = min(int(np.ceil((resamples + 1) * LEVEL)), resamples) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.partition(t, rank, axis=0)[rank] * se
        p = (1 + np.sum(t >= np.abs(value) / se, axis=0)) / (resamples + 1)
    # No spread at all: every resample repeats the value.
    constant = se < NO_SPREAD
    half = np.where(constant, 0.0, half)
    p = np.where(constant, np.where(np.abs(value) < NO_SPREAD, 1.0, 1 / (resamples + 1)), p)
    return Estimates(value, np.where(constant, 0.0, se), value - half, value + half, p)


def _standard_error(strata: Sequence[Stratum], value: Floats) -> Floats:
    """Linearised standard error of a ratio (Cochran 1977, "Sampling Techniques", 6.4), summed over strata."""
    variance = np.zeros_like(value)
    for stratum in strata:
        k = len(stratum.tokens)
        residuals = stratum.sums - stratum.tokens[:, None] * value
        variance += k / (k - 1) * ((residuals - residuals.mean(axis=0)) ** 2).sum(axis=0)
    tokens = float(sum(stratum.tokens.sum() for stratum in strata))
    return np.asarray(np.sqrt(variance) / tokens)


def _resampled_t(
    strata: Sequence[Stratum], value: Floats, rng: np.random.Generator, resamples: int
) -> Floats:
    """|t*| of every resample (resamples x quantities).

    All that a resample's ratio and its standard error need are sums of five things over the drawn clusters:
    tokens, tokens², residual, residual², residual x tokens. So drawing is one matrix product.
    """
    n, q = resamples, len(value)
    tokens, shift = np.zeros(n), np.zeros((n, q))
    moments: list[tuple[int, list[Floats]]] = []
    for stratum in strata:
        t, z = stratum.tokens[:, None], stratum.sums - stratum.tokens[:, None] * value
        drawn = _resampled_sums(np.hstack([t, t**2, z, z**2, z * t]), rng, resamples)
        residuals, squares, products = np.split(drawn[:, 2:], 3, axis=1)
        moments.append((len(t), [drawn[:, :1], drawn[:, 1:2], residuals, squares, products]))
        tokens += drawn[:, 0]
        shift += residuals
    shift /= tokens[:, None]  # value* - value
    variance = np.zeros((n, q))
    for k, (t, tt, z, zz, zt) in moments:
        residual, squared = z - shift * t, zz - 2 * shift * zt + shift**2 * tt
        variance += k / (k - 1) * np.maximum(squared - residual**2 / k, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_star = np.abs(shift) * tokens[:, None] / np.sqrt(variance)
    return np.where(np.isnan(t_star), 0.0, t_star)  # 0 / 0: neither moved nor spread


def _resampled_sums(columns: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Column sums over k of the k rows drawn with replacement, for every resample."""
    k = len(columns)
    rows = max(1, CHUNK_ENTRIES // k)
    result = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(0, k, (stop - start, k))
        drawn += np.arange(stop - start)[:, None] * k
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        result[start:stop] = weights.astype(np.float64) @ columns
    return result


def influences(strata: Sequence[Stratum]) -> tuple[Floats, Floats]:
    """Ratio of each quantity over all strata, and each cluster's influence on it (quantities x clusters).

    The linearised parts of a ratio (Cochran 1977, 6.4): `influences @ influences.T` is the quantities' covariance from rows.
    """
    tokens = sum(stratum.tokens.sum() for stratum in strata)
    value = np.sum([stratum.sums.sum(axis=0) for stratum in strata], axis=0) / tokens
    parts = []
    for stratum in strata:
        k = len(stratum.tokens)
        residuals = stratum.sums - stratum.tokens[:, None] * value
        parts.append(np.sqrt(k / max(1, k - 1)) * (residuals - residuals.mean(axis=0)).T / tokens)
    return value, np.hstack(parts)


def t_df(estimates: Estimates) -> Floats:
    """Degrees of freedom with which Student's t gives the bootstrap's intervals; NaN where there is no interval.

    Infinity where the interval is no wider than the normal distribution's, or has no width.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(estimates.se > 0, (estimates.high - estimates.low) / 2 / estimates.se, 0.0)
    normal = NormalDist().inv_cdf((1 + LEVEL) / 2)
    df = np.where(q > normal, stdtridf((1 + LEVEL) / 2, np.maximum(q, normal)), np.inf)
    bounded = np.isfinite(estimates.se) & np.isfinite(
        q
    )  # a resample without spread makes the interval boundless
    return np.where(bounded, df, np.nan)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: below 0.05 for all that stay significant; valid under any dependence."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted.tolist()


def paired_shares(both: int, first_only: int, second_only: int, neither: int) -> tuple[float, float, float]:
    """share(first) - share(second) on the same items, with Newcombe's (1998) interval, his method 10.

    The two shares' Wilson limits, joined as squares with their correlation phi taken off. It holds its level with
    few items, where resampling cannot: when all items agree a resample has no spread.
    """
    n = both + first_only + second_only + neither
    first, second = both + first_only, both + second_only
    p1, p2 = first / n, second / n
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    cross: float = both * neither - first_only * second_only
    if cross > 0:
        cross = max(cross - n / 2, 0)  # Newcombe's correction for continuity
    margins = first * (n - first) * second * (n - second)
    phi = cross / np.sqrt(margins) if margins else 0.0
    below, above = (p1 - low1, high2 - p2), (high1 - p1, p2 - low2)
    half = [float(np.sqrt(max(0.0, a**2 - 2 * phi * a * b + b**2))) for a, b in (below, above)]
    return p1 - p2, p1 - p2 - half[0], p1 - p2 + half[1]


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided mid-p value of McNemar's test: that each item on which the two differ falls either way alike.

    The exact test is too strict with few items, the mid-p keeps its level nearly as well (Fagerland, Lydersen &
    Laake 2013, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than exact conditional").
    """
    n, k = first_only + second_only, min(first_only, second_only)
    if not n:
        return 1.0
    return float(min(1.0, 2 * (binom.cdf(k, n, 0.5) - binom.pmf(k, n, 0.5) / 2)))
