"""A variance from few replicates, moderated by the study's other variances (empirical Bayes; Smyth 2004)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """What the study's own variances between replicates say about one of them (Smyth 2004).

    A variance is drawn as `variance` * df / chi²(df). With df = 0 there is no prior, and a variance counts as it is.
    """

    variance: float  # for a difference with one trained member on a single source
    df: float


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


def satterthwaite(*components: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variances, each given with its own (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in components)
    spread = sum(variance**2 / df for variance, df in components)
    return total**2 / spread if spread > 0 else np.inf
