"""The numbers of the comparison: every model's loss, and every pair's paired difference, on every set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from abctune.core.params import BASE
from abctune.study import statistics
from abctune.study.inputs import OVERALL, Study

ALPHA = 1 - statistics.LEVEL

Column = str | tuple[str, str]  # a model, or a pair (model, reference)
Floats = NDArray[np.float64]
Estimate = tuple[float, float | None, float | None, float | None, float | None]  # value, low, high, p, se


@dataclass(frozen=True)
class RowSet:
    """The rows a loss is computed on: one source's, or all."""

    name: str
    n: int  # conversations
    n_groups: int
    n_supervised: int


@dataclass(frozen=True)
class Loss:
    model: str
    on: RowSet
    value: float
    low: float | None  # None: too few groups for an interval
    high: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.value)


@dataclass(frozen=True)
class Difference:
    """loss(model) - loss(reference) on the same conversations: below 0, `model` is better."""

    model: str
    reference: str
    on: RowSet
    value: float
    low: float | None
    high: float | None
    p: float | None
    se: float | None
    p_holm: float | None = None  # corrected for all differences shown
    detectable: float | None = None  # the smallest true difference with an 80 % chance of being shown
    n_needed: float | None = None  # conversations for an 80 % chance to show a difference of this size


@dataclass(frozen=True)
class Comparison:
    sets: list[RowSet]  # overall first
    losses: list[Loss]
    differences: list[Difference]

    def loss(self, model: str, on: str) -> Loss:
        return next(loss for loss in self.losses if (loss.model, loss.on.name) == (model, on))

    def difference(self, model: str, reference: str, on: str) -> Difference:
        wanted = (model, reference, on)
        return next(d for d in self.differences if (d.model, d.reference, d.on.name) == wanted)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((d.model, d.reference) for d in self.differences))

    @property
    def tested(self) -> int:
        """How many differences Holm's correction is for."""
        return sum(difference.p is not None for difference in self.differences)


def pairs_of(models: list[str]) -> list[tuple[str, str]]:
    """(model, reference): every variant against base, then every variant against each earlier one."""
    variants = [name for name in models if name != BASE]
    return [(name, BASE) for name in variants] + [
        (later, earlier) for earlier, later in combinations(variants, 2)
    ]


def compare(study: Study, resamples: int = statistics.RESAMPLES) -> Comparison:
    """Estimate all losses and differences, each set with draws of its own that follow from params.seed."""
    rows = study.test_rows
    nll: dict[Column, Floats] = {
        name: model.conversations["nll"].to_numpy(float) for name, model in study.models.items()
    }
    pairs = pairs_of(list(study.models))
    nll |= {(model, reference): nll[model] - nll[reference] for model, reference in pairs}
    names = (OVERALL, *study.sources)
    sets, losses, differences = [], [], []
    for index, name in enumerate(names):
        rng = np.random.default_rng([study.params.seed, index])
        strata = study.sources if name == OVERALL else [name]
        on, estimates = estimate_set(name, strata, rows, nll, rng, resamples)
        sets.append(on)
        losses += [Loss(model, on, *estimates[model][:3]) for model in study.models]
        differences += [
            with_power(Difference(*pair, on, *estimates[pair]), len(pairs) * len(names)) for pair in pairs
        ]
    return Comparison(sets, losses, with_holm(differences))


def estimate_set(
    name: str,
    strata: list[str],
    rows: pd.DataFrame,
    nll: dict[Column, Floats],
    rng: np.random.Generator,
    resamples: int,
) -> tuple[RowSet, dict[Column, Estimate]]:
    """Estimates of every column of `nll` (a model's, or a pair's difference) on one set.

    The set of all sources is resampled source by source: how many rows a source has is the mix's doing, not
    chance, so its share of the loss should not add to the uncertainty.
    """
    values = np.column_stack(list(nll.values()))
    clustered = []
    for source in strata:
        of = (rows["source"] == source).to_numpy()
        groups, tokens = rows["group"].to_numpy()[of], rows["n_supervised"].to_numpy(float)[of]
        clustered.append(statistics.cluster_sums(groups, tokens, values[of]))
    found = statistics.bootstrap(clustered, rng, resamples)
    in_set = rows[rows["source"].isin(strata)]
    on = RowSet(name, len(in_set), sum(len(s.tokens) for s in clustered), int(in_set["n_supervised"].sum()))
    numbers = zip(found.value, found.low, found.high, found.p, found.se, strict=True)
    return on, {column: tuple(map(_number, row)) for column, row in zip(nll, numbers, strict=True)}


def with_power(difference: Difference, comparisons: int) -> Difference:
    """Add what this set could have shown, at Holm's strictest step: enough wherever the p-value ranks."""
    if difference.se is None:
        return difference
    alpha = ALPHA / comparisons
    detectable = statistics.minimum_detectable_difference(difference.se, alpha)
    if not difference.value:
        return replace(difference, detectable=detectable)
    needed = statistics.sample_size_needed(difference.on.n, difference.se, difference.value, alpha)
    return replace(difference, detectable=detectable, n_needed=needed)


def with_holm(differences: list[Difference]) -> list[Difference]:
    tested = [difference.p for difference in differences if difference.p is not None]
    adjusted = iter(statistics.holm(tested))
    return [d if d.p is None else replace(d, p_holm=next(adjusted)) for d in differences]


def _number(x: float) -> float | None:
    """A plain float; None for what could not be computed or is unbounded."""
    return float(x) if np.isfinite(x) else None
