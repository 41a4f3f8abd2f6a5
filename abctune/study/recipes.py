"""Which recipe is better: models compared over replicates (trainings) and test rows at once. docs/statistics.md explains.

A recipe's value of a metric on a set of rows is a ratio, sum / weight (loss: nll / supervised tokens), averaged over its
replicates: trainings of the same recipe and rows that differ in the training seed. Two things are random, which
trainings were run and which rows were held out, and the interval of a difference covers both.

How to use it:

    rows = TestRows(weights, groups, sources)          # each (n,); one entry per test row
    sums = {"base": (1, n), "B": (3, n), "C": (3, n)}  # per model: replicates x rows, rows in the order of `rows`
    sets = {"overall": ("chat", "instruct"), "chat": ("chat",), "general": ("general",)}
    found = compare_recipes(rows, sums, pairs=[("B", "base"), ("C", "B")], sets=sets, margin=0.02, seed=3407)
    found.differences  # list[RecipeDifference], ordered by set, then by pair
    found.values       # list[RecipeValue], ordered by set, then by model
    found.difference("C", "B", "overall").outcome  # "better", "worse", "equivalent", "not worse" or "undecided"
    what_would_decide(difference, costs, found.tested)  # the cheapest study that would decide, or None

Row r of two models' sums are replicates with the same training seed, so differences are taken replicate by replicate.
Where two models have different numbers of replicates, the first ones that both have are compared. Models named in
`fixed` (base) are not trained, so they have one row of sums and no variance between replicates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from abctune.core.params import BASE
from abctune.study import statistics
from abctune.study.statistics import ALPHA, NO_SPREAD, Stratum
from abctune.study.variances import (
    Component,
    Parts,
    Prior,
    from_replicates,
    margin_of_error,
    margin_p,
    p_value,
    parts_of,
    priors_of,
)

MOST_REPLICATES, MOST_ROWS = 100, 1_000_000  # beyond these no plan is worth naming
POWER = 0.8

Floats = NDArray[np.float64]
Quantity = tuple[str, str | None]  # a model, or (model, reference): their difference
About = Literal["recipes", "adapters"]
Outcome = Literal["better", "worse", "equivalent", "not worse", "undecided"]


@dataclass(frozen=True)
class TestRows:
    """The rows that all models were scored on, each array (n,)."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    weights: Floats  # the ratio's denominator: supervised tokens for the loss
    groups: NDArray[np.generic]  # rows of a group share text and count as one draw
    sources: NDArray[np.generic]  # rows are drawn source by source

    @classmethod
    def of(cls, table: pd.DataFrame, weight: str) -> TestRows:
        """From a table with the columns `group`, `source` and the one that holds the weights."""
        return cls(table[weight].to_numpy(float), table["group"].to_numpy(str), table["source"].to_numpy(str))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean over replicates of a value or a difference on one set; None for what too few groups leave unknown."""

    value: float
    by_replicate: tuple[float, ...]
    low: float | None = None  # 95 %, for this estimate alone
    high: float | None = None
    se: float | None = None
    se_rows: float | None = None  # what which rows were held out contributes
    rows_df: float | None = None  # its degrees of freedom; infinity where the normal distribution holds
    se_replicates: float | None = None  # what which trainings were run contributes; 0 with one replicate
    replicates_df: float | None = None  # its degrees of freedom; None with one replicate

    @property
    def components(self) -> list[Component]:
        """The sources of chance, each as a variance of the mean with its degrees of freedom; none without an interval."""
        known = [(self.se_rows, self.rows_df), (self.se_replicates, self.replicates_df)]
        return [(se**2, df) for se, df in known if se is not None and df is not None]


@dataclass(frozen=True, kw_only=True)
class RecipeValue(Estimate):
    """One model's value on one set, averaged over its replicates."""

    model: str
    on: str


@dataclass(frozen=True, kw_only=True)
class RecipeDifference(Estimate):
    """value(model) - value(reference) on one set, averaged over their common replicates."""

    model: str
    reference: str
    on: str
    about: About  # "adapters": one training of a recipe, so nothing is said about the recipe
    p: float | None  # two-sided, of "no difference"
    interaction: float  # variance of one replicate's difference that the choice of rows explains
    is_same: bool  # no row of any replicate differs
    n: int  # rows
    n_groups: int
    p_holm: float | None = None  # p corrected for all differences of the study
    p_not_worse: float | None = (
        None  # of "worse by the margin or more"; corrected, below 0.05 where it is ruled out
    )
    p_not_better: float | None = None  # of "better by the margin or more"; corrected likewise
    outcome: Outcome = "undecided"

    @property
    def k(self) -> int:
        """How many replicates were compared."""
        return len(self.by_replicate)

    @property
    def replicate_sd(self) -> float | None:
        """Standard deviation of the difference between replicates; None with one."""
        return float(np.std(self.by_replicate, ddof=1)) if self.k > 1 else None

    @property
    def why_no_interval(self) -> str:
        """Where there is none, the reason, as it stands in a sentence."""
        if self.is_same:
            return "no row differs"
        if self.n_groups < statistics.MIN_CLUSTERS:
            return "there are too few independent conversations"
        return "too few of the conversations tell them apart"

    @property
    def is_within_margin(self) -> bool:
        """Whether the two are shown to differ by less than the margin, whatever else is shown."""
        return _is_below(self.p_not_worse, ALPHA) and _is_below(self.p_not_better, ALPHA)


@dataclass(frozen=True)
class RecipeComparison:
    """All values and differences of a study, for one metric."""

    values: list[RecipeValue]
    differences: list[RecipeDifference]
    margin: float | None  # None: the metric has none, so nothing is called equivalent or not worse
    priors: dict[str, tuple[Prior, Prior]]  # by set: of the set itself, and of all sets

    def value(self, model: str, on: str) -> RecipeValue:
        """The value of one model on one set."""
        return next(v for v in self.values if (v.model, v.on) == (model, on))

    def difference(self, model: str, reference: str, on: str) -> RecipeDifference:
        """The difference of one pair on one set."""
        wanted = (model, reference, on)
        return next(d for d in self.differences if (d.model, d.reference, d.on) == wanted)

    @property
    def tested(self) -> int:
        """How many differences the correction is for."""
        return sum(difference.p is not None for difference in self.differences)


@dataclass(frozen=True)
class Costs:
    """Measured seconds, for what_would_decide."""

    per_replicate: float  # training one more replicate of both models
    per_row: float  # scoring one more test row with one replicate of both models


@dataclass(frozen=True)
class Plan:
    """A study that would decide a difference of the size found, with 80 % power."""

    replicates: int
    rows: int
    seconds: float  # beyond what the present study took


# --- the comparison --------------------------------------------------------------------------------


def compare_recipes(
    rows: TestRows,
    sums: Mapping[str, Floats],
    pairs: Sequence[tuple[str, str]],
    sets: Mapping[str, Sequence[str]],
    *,
    margin: float | None,
    seed: int,
    fixed: Collection[str] = (BASE,),
    lower_is_better: bool = True,
    resamples: int = statistics.RESAMPLES,
) -> RecipeComparison:
    """Estimate every model and every pair on every set, with verdicts corrected for all of them.

    Args:
        rows: the common test rows.
        sums: per model (replicates x rows), the ratio's numerators; rows in the order of `rows`.
        pairs: (model, reference), the differences to test.
        sets: name -> the sources it is made of. All sets are one family for the corrections.
        margin: differences below this count as none, in the metric's unit; None where no such size is set.
        seed: the resampling's draws follow from it.
        fixed: models that were not trained here, whose one row of sums is compared with every replicate.
        lower_is_better: whether a negative difference is "better".
        resamples: of groups, for the rows' share of the interval.

    Raises:
        ValueError: a model's sums are not replicates x rows, or a fixed model has more than one row of them.
    """
    for model, values in sums.items():
        if values.ndim != 2 or values.shape[1] != len(rows.weights) or (model in fixed and len(values) != 1):
            wanted = f"({'1' if model in fixed else 'replicates'}, {len(rows.weights)})"
            raise ValueError(f"sums of {model} have shape {values.shape}, not {wanted}")
    quantities: dict[Quantity, Floats] = {(model, None): values for model, values in sums.items()}
    quantities |= {pair: paired(sums[pair[0]], sums[pair[1]], pair, fixed) for pair in pairs}
    trained = {
        (model, reference): sum(name is not None and name not in fixed for name in (model, reference))
        for model, reference in quantities
    }
    parts = {
        (on, *quantity): found
        for index, (on, sources) in enumerate(sets.items())
        for quantity, found in _parts_of_set(
            rows, quantities, sources, trained, np.random.default_rng([seed, index]), resamples
        ).items()
    }
    priors = priors_of(
        {on: [parts[on, *pair] for pair in pairs] for on in sets},
        [len(values) for model, values in sums.items() if model not in fixed],
        len({source for sources in sets.values() for source in sources}),
    )
    found = [value_of(model, on, parts[on, model, None], priors[on]) for on in sets for model in sums]
    differences = [
        difference_of(*pair, on, parts[on, *pair], priors[on], trained[pair]) for on in sets for pair in pairs
    ]
    return RecipeComparison(found, with_verdicts(differences, margin, lower_is_better), margin, priors)


def paired(model: Floats, reference: Floats, pair: tuple[str, str], fixed: Collection[str]) -> Floats:
    """Differences replicate by replicate; a fixed model is compared with all replicates of the other."""
    counts = [len(values) for name, values in zip(pair, (model, reference), strict=True) if name not in fixed]
    k = min(counts, default=1)
    return model[: k if pair[0] not in fixed else 1] - reference[: k if pair[1] not in fixed else 1]


def _parts_of_set(
    rows: TestRows,
    quantities: Mapping[Quantity, Floats],
    sources: Sequence[str],
    trained: Mapping[Quantity, int],
    rng: np.random.Generator,
    resamples: int,
) -> dict[Quantity, Parts]:
    """Sources of variance of every quantity on the rows of one or more sources."""
    members = statistics.strata_of_sources(rows.groups, rows.sources, sources)
    # Replicates of all quantities at once: finding a row's group costs more than adding it up.
    stacked = np.concatenate(list(quantities.values()))
    ends = np.cumsum([len(values) for values in quantities.values()])[:-1]
    strata = [statistics.cluster_sums(rows.groups[m], rows.weights[m], stacked[:, m].T) for m in members]
    split = [np.split(one.sums, ends, axis=1) for one in strata]
    by_quantity = {
        quantity: [Stratum(one.tokens, parts[index]) for one, parts in zip(strata, split, strict=True)]
        for index, quantity in enumerate(quantities)
    }
    # The bootstrap draws whole groups, of all quantities at once: of each the mean over replicates.
    means = [
        Stratum(one.tokens, np.column_stack([part.mean(axis=1) for part in parts]))
        for one, parts in zip(strata, split, strict=True)
    ]
    rows_df = statistics.t_df(statistics.bootstrap(means, rng, resamples))
    weights = np.array([rows.weights[rows.sources == source].sum() for source in sources])
    share = float(((weights / weights.sum()) ** 2).sum())
    return {
        quantity: parts_of(
            *statistics.influences(by_quantity[quantity]),
            unit=of_trainings * share,
            rows_df=float(df),
            n=sum(len(m) for m in members),
            n_groups=sum(len(stratum.tokens) for stratum in means),
            is_same=not any(quantities[quantity][:, m].any() for m in members),
        )
        for (quantity, of_trainings), df in zip(trained.items(), rows_df, strict=True)
    }


# --- interval and test -----------------------------------------------------------------------------


def estimate_of(parts: Parts, priors: Sequence[Prior]) -> Estimate:
    """The mean over replicates, with its interval and standard errors."""
    value, by_replicate = float(parts.by_replicate.mean()), tuple(parts.by_replicate.tolist())
    if np.isnan(parts.rows_df):
        return Estimate(value=value, by_replicate=by_replicate)
    training, training_df = from_replicates(parts, priors)
    se = float(np.sqrt(parts.shared + training))
    if se < NO_SPREAD:
        return Estimate(value=value, by_replicate=by_replicate)
    found = Estimate(
        value=value,
        by_replicate=by_replicate,
        se=se,
        se_rows=float(np.sqrt(parts.shared)),
        rows_df=parts.rows_df,
        se_replicates=float(np.sqrt(training)),
        replicates_df=training_df,
    )
    half = margin_of_error(found.components, ALPHA)
    return replace(found, low=value - half, high=value + half)


def value_of(model: str, on: str, parts: Parts, priors: Sequence[Prior]) -> RecipeValue:
    """A model's value and its interval."""
    return RecipeValue(model=model, on=on, **vars(estimate_of(parts, priors)))


def difference_of(
    model: str, reference: str, on: str, parts: Parts, priors: Sequence[Prior], trained: int
) -> RecipeDifference:
    """A pair's difference, its interval and test, without a verdict; `trained` of the two were trained here."""
    found = estimate_of(parts, priors)
    return RecipeDifference(
        model=model,
        reference=reference,
        on=on,
        about="recipes" if len(parts.by_replicate) > 1 or trained == 0 else "adapters",
        p=p_value(abs(found.value), found.components) if found.components else None,
        is_same=parts.is_same,
        interaction=parts.interaction,
        n=parts.n,
        n_groups=parts.n_groups,
        **vars(found),
    )


# --- verdicts --------------------------------------------------------------------------------------


def with_verdicts(
    differences: Sequence[RecipeDifference], margin: float | None, lower_is_better: bool
) -> list[RecipeDifference]:
    """Correct for all differences and conclude. Two families: "different", and "within the margin"."""
    tested = [i for i, d in enumerate(differences) if d.p is not None]
    sign = 1 if lower_is_better else -1
    p_holm = statistics.holm([d.p for d in differences if d.p is not None])
    result = list(differences)
    for i, p in zip(tested, p_holm, strict=True):
        result[i] = replace(result[i], p_holm=p)
    if margin is not None:
        p_margins = np.array(
            [margin_p(sign * result[i].value, result[i].components, margin) for i in tested]
        ).reshape(-1, 2)
        for i, (not_worse, not_better) in zip(tested, holm_of_margins(p_margins).tolist(), strict=True):
            result[i] = replace(result[i], p_not_worse=not_worse, p_not_better=not_better)
        result = [replace(d, p_not_worse=0.0, p_not_better=0.0) if d.is_same else d for d in result]
    return [replace(d, outcome=outcome_of(d, sign)) for d in result]


def holm_of_margins(p: Floats) -> Floats:
    """Holm's correction for two hypotheses per comparison (m x 2) of which at most one is true (Shaffer 1986).

    No difference is both "worse by the margin or more" and "better by the margin or more", so m comparisons hold at most m
    true hypotheses, and one fewer for every comparison that both are rejected for.
    """
    adjusted, running, closed = np.empty(p.shape), 0.0, 0
    seen = np.zeros(len(p), int)
    for flat in np.argsort(p, axis=None, kind="stable"):
        row, column = np.unravel_index(flat, p.shape)
        running = max(running, min(1.0, float((len(p) - closed) * p[row, column])))
        adjusted[row, column] = running
        seen[row] += 1
        closed += seen[row] == 2
    return adjusted


def outcome_of(d: RecipeDifference, sign: int) -> Outcome:
    """The strongest statement that holds after correction."""
    if d.low is not None and d.high is not None and _is_below(d.p_holm, ALPHA) and not d.low <= 0 <= d.high:
        return "better" if sign * d.value < 0 else "worse"
    if d.is_within_margin:
        return "equivalent"
    return "not worse" if _is_below(d.p_not_worse, ALPHA) else "undecided"


def _is_below(p: float | None, alpha: float) -> bool:
    return p is not None and p < alpha


# --- what would decide -----------------------------------------------------------------------------


def what_would_decide(
    d: RecipeDifference, margin: float | None, costs: Costs, comparisons: int
) -> Plan | None:
    """The cheapest number of replicates and test rows that would decide a difference of the size found.

    Decided means shown at Holm's strictest step, or shown to be within the margin, with 80 % power. None where no
    study below MOST_REPLICATES and MOST_ROWS would, or where this one has no interval.
    """
    if d.se is None:
        return None
    plans = []
    for k in range(d.k, d.k + 1 if d.about == "adapters" else MOST_REPLICATES + 1):
        factor = _rows_factor(d, k, margin, comparisons)
        if factor is None:
            continue
        rows = int(np.ceil(d.n * factor))
        scoring = rows * k - d.n * d.k
        plans.append(Plan(k, rows, (k - d.k) * costs.per_replicate + scoring * costs.per_row))
    return min(plans, key=lambda plan: plan.seconds, default=None)


def _rows_factor(d: RecipeDifference, k: int, margin: float | None, comparisons: int) -> float | None:
    """By how much the rows must be multiplied for k replicates to decide; None: more than MOST_ROWS."""
    most = MOST_ROWS / d.n

    def is_decided(factor: float) -> bool:
        """Whether `factor` times the rows would show a difference or equivalence with probability POWER."""
        components = _future_components(d, k, factor)
        decided = margin_of_error(components, ALPHA / comparisons)
        missed = 1 - POWER
        # To be shown, one end must stay clear of 0. To be within, both must stay inside: half of the misses on each side.
        shown = decided + margin_of_error(components, 2 * missed) <= abs(d.value)
        within = margin is not None and decided + margin_of_error(components, missed) <= margin - abs(d.value)
        return bool(shown or within)

    if is_decided(1.0):
        return 1.0
    if most <= 1 or not is_decided(most):
        return None
    low, high = 0.0, np.log(most)
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if is_decided(np.exp(middle)) else (middle, high)
    return float(np.exp(high))


def _future_components(d: RecipeDifference, k: int, factor: float) -> list[Component]:
    """The sources of chance in a larger study."""
    assert d.se_rows is not None and d.se_replicates is not None and d.rows_df is not None  # as d.se is
    rows = (d.se_rows**2 / factor, d.rows_df * factor)
    if d.replicates_df is None:
        return [rows]
    one = d.se_replicates**2 * d.k
    training = (max(0.0, one - d.interaction) + d.interaction / factor) / k
    return [rows, (training, d.replicates_df + k - d.k)]
