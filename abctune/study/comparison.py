"""The numbers of the comparison: every model's value of every metric, and every pair's difference, on every set of rows.

A variant's recipe is what is compared: its replicates are pooled, and the intervals cover which rows were held out and
which first weights and order of rows a training happened to have (docs/statistics.md). Where a variant has one
replicate, the intervals cover the rows alone, and what they say holds for these adapters, not for the recipes.

abctune.study.recipes estimates, from arrays alone and one metric at a time. Here those estimates get the study's
metrics, sets and costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from abctune.core.params import BASE
from abctune.core.records import LOSS, Metric
from abctune.study import recipes, statistics
from abctune.study.inputs import Study
from abctune.study.recipes import About, Outcome, Plan
from abctune.study.wording import listed, on_set


@dataclass(frozen=True)
class RowSet:
    """The rows a metric is computed on: one source's, all sources', or general text."""

    name: str
    n: int  # conversations
    n_groups: int
    n_supervised: int
    lone: tuple[str, ...] = ()  # sources with one group only, so that how far its groups differ is not known

    @property
    def where(self) -> str:
        """The set's name as it stands in a sentence."""
        return on_set(self.name)

    @property
    def size(self) -> str:
        """`n = 85 in 80 groups`."""
        return f"n = {self.n:,}" + (f" in {self.n_groups:,} groups" if self.n_groups < self.n else "")


@dataclass(frozen=True)
class Value:
    """A model's value of a metric on a set, over its replicates."""

    metric: Metric
    model: str
    on: RowSet
    value: float
    low: float | None  # None: too few groups for an interval
    high: float | None
    by_replicate: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """Perplexity: exp of the loss in nats per token."""
        return math.exp(self.value)


@dataclass(frozen=True)
class Difference:
    """value(model) - value(reference) on the same conversations, over the replicates of both."""

    metric: Metric
    model: str
    reference: str
    on: RowSet
    about: About  # "adapters": one training of a recipe, so nothing is said about the recipe
    value: float
    low: float | None  # None: too few groups for an interval
    high: float | None
    p: float | None  # of "the difference is 0"
    p_holm: float | None  # corrected for all differences of the metric
    by_replicate: tuple[float, ...]  # what each replicate alone would say
    replicate_sd: float | None  # between replicates; None with one
    is_same: bool  # no row of any replicate differs
    why_no_interval: str  # where there is none, the reason, as it stands in a sentence
    is_within_margin: bool  # shown to be smaller than the margin, whether or not another outcome is shown too
    outcome: Outcome
    plan: Plan | None  # what would decide, where this study does not

    @property
    def pair(self) -> tuple[str, str]:
        """(model, reference)."""
        return self.model, self.reference


@dataclass(frozen=True)
class Comparison:
    """All values and differences of a study."""

    sets: list[RowSet]  # overall first
    metrics: Sequence[Metric]  # loss first
    values: list[Value]
    differences: list[Difference]
    margin: float
    replicates: dict[str, int]  # how many each model has

    @property
    def replicated(self) -> bool:
        """Whether all differences are of recipes: every variant was trained more than once."""
        return all(d.about == "recipes" for d in self.differences)

    def value(self, model: str, on: str, metric: str = LOSS.name) -> Value:
        """One model's value on one set."""
        wanted = (model, on, metric)
        return next(v for v in self.values if (v.model, v.on.name, v.metric.name) == wanted)

    def difference(self, model: str, reference: str, on: str, metric: str = LOSS.name) -> Difference:
        """One pair's difference on one set."""
        wanted = (model, reference, on, metric)
        return next(d for d in self.differences if (d.model, d.reference, d.on.name, d.metric.name) == wanted)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(model, reference) of all differences, in their order."""
        return list(dict.fromkeys(d.pair for d in self.differences))

    @property
    def tested(self) -> int:
        """How many differences Holm's correction is for; each metric is a family of its own."""
        return sum(d.p is not None for d in self.differences if d.metric.name == self.metrics[0].name)


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """(model, reference): every variant against base, then every variant against each earlier one."""
    variants = [name for name in models if name != BASE]
    return [(name, BASE) for name in variants] + [
        (later, earlier) for earlier, later in combinations(variants, 2)
    ]


def compare(study: Study, resamples: int = statistics.RESAMPLES) -> Comparison:
    """Estimate all values and differences; the resampling's draws follow from params.seed."""
    sets = {name: row_set(study, name, sources) for name, sources in study.sets.items()}
    values: list[Value] = []
    differences: list[Difference] = []
    for metric in study.metrics:
        found = compare_metric(study, metric, resamples)
        values += [measured_value(metric, sets[v.on], v) for v in found.values]
        differences += [
            measured_difference(metric, sets[d.on], d, plan_of(study, d, found.margin, found.tested))
            for d in found.differences
        ]
    replicates = {name: len(model.replicates) for name, model in study.models.items()}
    margin = study.params.evaluation.margin
    return Comparison(list(sets.values()), study.metrics, values, differences, margin, replicates)


def compare_metric(study: Study, metric: Metric, resamples: int) -> recipes.RecipeComparison:
    """All values and differences of one metric: one family for the corrections."""
    return recipes.compare_recipes(
        recipes.TestRows.of(study.test_rows, metric.weight),
        {name: model.sums(metric) for name, model in study.models.items()},
        pairs_of(list(study.models)),
        study.sets,
        margin=study.params.evaluation.margin if metric.name == LOSS.name else None,  # it is in nats of loss
        seed=study.params.seed,
        lower_is_better=metric.lower_is_better,
        resamples=resamples,
    )


def row_set(study: Study, name: str, sources: Sequence[str]) -> RowSet:
    """The set's size in conversations, groups and supervised tokens."""
    rows = study.test_rows[study.test_rows["source"].isin(sources)]
    by_source = rows.groupby("source")["group"].nunique()
    lone = tuple(str(source) for source in sources if by_source.get(source) == 1)
    return RowSet(name, len(rows), rows["group"].nunique(), int(rows[LOSS.weight].sum()), lone)


def measured_value(metric: Metric, on: RowSet, v: recipes.RecipeValue) -> Value:
    """What recipes.value_of estimated, with the metric and the set that it is of; a share's interval cut to shares."""
    low, high = possible(v.low, v.high, 0.0) if metric.is_share else (v.low, v.high)
    return Value(metric, v.model, on, v.value, low, high, v.by_replicate)


def possible(low: float | None, high: float | None, lowest: float) -> tuple[float | None, float | None]:
    """The part of an interval that a share (`lowest` 0) or a difference of shares (-1) can be in.

    Where only two or three conversations have any token right, Student's t has less than one degree of freedom and
    bounds in the thousands.
    """
    if low is None or high is None:
        return None, None
    return max(low, lowest), min(high, 1.0)


def measured_difference(
    metric: Metric, on: RowSet, d: recipes.RecipeDifference, plan: Plan | None
) -> Difference:
    """What recipes.difference_of estimated, with its metric and set, and what would decide it.

    A share's interval is cut to what shares can differ by.
    """
    low, high = possible(d.low, d.high, -1.0) if metric.is_share else (d.low, d.high)
    return Difference(
        metric=metric,
        model=d.model,
        reference=d.reference,
        on=on,
        about=d.about,
        value=d.value,
        low=low,
        high=high,
        p=d.p,
        p_holm=d.p_holm,
        by_replicate=d.by_replicate,
        replicate_sd=d.replicate_sd,
        is_same=d.is_same,
        why_no_interval=f"{listed(list(on.lone))} has one group of test rows only"
        if on.lone
        else d.why_no_interval,
        is_within_margin=d.is_within_margin,
        outcome=d.outcome,
        plan=plan,
    )


def plan_of(study: Study, d: recipes.RecipeDifference, margin: float | None, tested: int) -> Plan | None:
    """What would decide a difference that this study does not, at the costs that this study measured."""
    if d.outcome != "undecided":
        return None
    return recipes.what_would_decide(d, margin, costs_of(study, d), tested)


def costs_of(study: Study, d: recipes.RecipeDifference) -> recipes.Costs:
    """Measured seconds of both models: to train one more replicate, and to score one more row with one replicate."""
    training = scoring = 0.0
    for name in (d.model, d.reference):
        if name in study.trained:
            record = study.trained[name].record
            together = sum(one.resources.seconds for one in record.replicates)
            training += together / len(record.replicates) / record.at_once
        model = study.models[name]
        scoring += model.record.resources.seconds / len(model.rows)
    return recipes.Costs(training, scoring)
