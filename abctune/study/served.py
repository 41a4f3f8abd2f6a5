"""Served as judged? The published adapter on each base format that is served, compared with how it was judged.

Adapters are judged on the base as eval loads it, and served on others: 16-bit, 4-bit, an exported file of its own. Here rows are all
that is random (it is one and the same adapter), so the interval is the paired bootstrap over rows. What is concluded is
corrected for all variants and formats; the interval printed is of one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd

from abctune.core.errors import UserError
from abctune.core.params import BASE, ExportFormat, exported_stage
from abctune.core.records import LOSS
from abctune.study import recipes, statistics, variances
from abctune.study.inputs import Evaluated, Study
from abctune.study.statistics import ALPHA, NO_SPREAD
from abctune.study.verdicts import sentence
from abctune.study.wording import adapter_of, interval, sorted_by_size

Outcome = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class Served:
    """loss as served - loss as judged, over all sources: above 0, the format costs something."""

    model: str
    format: str
    n: int
    judged: float  # loss in nats per token
    served: float
    value: float
    low: float | None
    high: float | None
    se: float | None
    df: float | None  # those with which Student's t gives the bootstrap's interval
    p: float | None  # of "the format costs nothing"
    gain: float | None  # over base on the same format; None where base was not scored on it
    outcome: Outcome = "undecided"
    margin: float = 0.0  # that it was judged by
    p_corrected: float | None = None  # of what the interval alone would show and the correction does not

    @property
    def text(self) -> str:
        """`equivalent: 0.001 [−0.001, 0.003]`; where the correction left nothing of it, also its p."""
        if self.low is None or self.high is None:
            return "undecided: too few rows for an interval"
        if self.outcome in ("better", "worse"):
            return f"{self.outcome} by {interval(*sorted_by_size(self.value, self.low, self.high))}"
        amount = f"{self.outcome}: {interval(self.value, self.low, self.high, self.margin)}"
        return (
            amount if self.p_corrected is None else f"{amount}, p = {self.p_corrected:.2g} after correction"
        )


def served_headlines(served: Sequence[Served]) -> list[str]:
    """A line per variant that was scored on other formats."""
    return [
        sentence(f"{adapter_of(model)} as served, compared with how it was judged (nats): ")
        + "; ".join(f"{one.format} {one.text}" for one in served if one.model == model)
        for model in dict.fromkeys(one.model for one in served)
    ]


def compare_served(study: Study) -> list[Served]:
    """One entry per variant and format, each with its outcome after correction for all of them.

    Raises:
        UserError: a format was scored on other rows than the comparison's.
    """
    found = [
        served_on(study, name, str(form), rows)
        for name in study.trained
        for form, rows in study.models[name].served.groupby("format", sort=False)
    ]
    return judged_together(found, study.params.evaluation.margin)


def judged_together(found: Sequence[Served], margin: float) -> list[Served]:
    """With outcomes. Two families, as for recipes: "it costs something", and "it costs the margin or more"."""
    tested = [i for i, one in enumerate(found) if one.p is not None]
    p_differs = statistics.holm([one.p for one in found if one.p is not None])
    p_margins = recipes.holm_of_margins(
        np.array([margin_p(found[i], margin) for i in tested], dtype=np.float64).reshape(-1, 2)
    )
    result = list(found)
    for i, p, both in zip(tested, p_differs, p_margins.tolist(), strict=True):
        result[i] = concluded(replace(found[i], margin=margin), p, max(both))
    return result


def margin_p(one: Served, margin: float) -> tuple[float, float]:
    """The p-values of "it costs the margin or more" and of "it gains the margin or more"."""
    if one.se is None or one.df is None:
        return 1.0, 1.0
    if one.se < NO_SPREAD:
        return float(one.value >= margin), float(one.value <= -margin)
    return variances.margin_p(one.value, [(one.se**2, one.df)], margin)


def served_on(study: Study, name: str, form: str, rows: pd.DataFrame) -> Served:
    """One variant on one format."""
    judged = own_rows(study, study.models[name])
    rows = rows[rows["source"].isin(study.sources)].sort_values("id", ignore_index=True)
    stage = exported_stage("served", name, form) if form in get_args(ExportFormat) else f"eval@{name}"
    if stage.startswith("served"):  # without rows whose replies the file's own chat template changes
        judged = judged[judged["id"].isin(rows["id"])].reset_index(drop=True)
    if list(rows["id"]) != list(judged["id"]) or list(rows["n_supervised"]) != list(judged["n_supervised"]):
        raise UserError(
            f"unfair comparison: {name} was scored as served ({form}) on other rows than as judged; "
            f"run `dvc repro --force --single-item {stage}`"
        )
    tokens = rows["n_supervised"].to_numpy(float)
    gap = (rows["nll"] - judged["nll"]).to_numpy(float)
    groups, sources = rows["group"].to_numpy(str), rows["source"].to_numpy(str)
    strata = [
        statistics.cluster_sums(groups[m], tokens[m], gap[m, None])
        for m in statistics.strata_of_sources(groups, sources, study.sources)
    ]
    e = statistics.bootstrap(strata, np.random.default_rng([study.params.seed, len(form)]))
    low, high, se, p = (float(x[0]) if np.isfinite(x[0]) else None for x in (e.low, e.high, e.se, e.p))
    df = float(statistics.t_df(e)[0])  # infinite where the normal distribution holds
    losses = judged["nll"].sum() / tokens.sum(), rows["nll"].sum() / tokens.sum()
    gain = gain_on(study, form, rows)
    value = float(e.value[0])
    return Served(name, form, len(rows), *losses, value, low, high, se, None if np.isnan(df) else df, p, gain)


def own_rows(study: Study, model: Evaluated) -> pd.DataFrame:
    """The published replicate's rows of all sources, sorted by id."""
    rows = model.of(model.record.published)
    return rows[rows["source"].isin(study.sources)].reset_index(drop=True)


def gain_on(study: Study, form: str, rows: pd.DataFrame) -> float | None:
    """The gain over base on the same rows in the same format; None where base was not scored in it.

    Raises:
        UserError: base was scored without some of these rows.
    """
    base = study.models[BASE].served
    base = base[base["format"] == form]
    if base.empty:
        return None
    base = base[base["id"].isin(rows["id"])]
    if len(base) != len(rows):
        stage = exported_stage("served", BASE, form) if form in get_args(ExportFormat) else "eval-base"
        raise UserError(
            f"unfair comparison: base was scored as served ({form}) on other rows than its variants; "
            f"run `dvc repro --force --single-item {stage}`"
        )
    return float((base[LOSS.sum].sum() - rows[LOSS.sum].sum()) / rows[LOSS.weight].sum())


def concluded(one: Served, p_differs: float, p_margin: float) -> Served:
    """With the outcome that holds after correction, or the corrected p of what the interval alone would show.

    Equivalent within the margin comes first: a small difference that is shown costs nothing that counts.
    """
    if one.low is None or one.high is None:
        return one
    is_inside, is_apart = -one.margin < one.low and one.high < one.margin, not one.low <= 0 <= one.high
    if is_inside and p_margin < ALPHA:
        return replace(one, outcome="equivalent")
    if is_apart and p_differs < ALPHA:
        return replace(one, outcome="better" if one.value < 0 else "worse")
    if is_inside or is_apart:
        return replace(one, p_corrected=p_margin if is_inside else p_differs)
    return one
