"""Served as judged? The published adapter on each base format that is served, compared with how it was judged.

Adapters are judged on the base as eval loads it, and served on others: 16-bit, 4-bit, an exported file of its own. Here rows are all
that is random (it is one and the same adapter), so the interval is the paired bootstrap over rows.
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
from abctune.study import statistics
from abctune.study.inputs import Evaluated, Study
from abctune.study.statistics import ALPHA
from abctune.study.wording import interval, sorted_by_size

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
    p: float | None
    gain: float | None  # over base on the same format; None where base was not scored on it
    outcome: Outcome = "undecided"

    @property
    def text(self) -> str:
        """`equivalent: 0.001 [−0.001, 0.003]`."""
        if self.low is None or self.high is None:
            return "undecided: too few rows for an interval"
        if self.outcome in ("better", "worse"):
            return f"{self.outcome} by {interval(*sorted_by_size(self.value, self.low, self.high))}"
        return f"{self.outcome}: {interval(self.value, self.low, self.high)}"


def served_headlines(served: Sequence[Served]) -> list[str]:
    """A line per variant that was scored on other formats."""
    return [
        f"{model} as served, compared with how it was judged (nats): "
        + "; ".join(f"{one.format} {one.text}" for one in served if one.model == model)
        for model in dict.fromkeys(one.model for one in served)
    ]


def compare_served(study: Study) -> list[Served]:
    """One entry per variant and format; equivalence and difference corrected for all of them.

    Raises:
        UserError: a format was scored on other rows than the comparison's.
    """
    found = [
        served_on(study, name, str(form), rows)
        for name in study.trained
        for form, rows in study.models[name].served.groupby("format", sort=False)
    ]
    tested = [one for one in found if one.p is not None]
    adjusted = iter(statistics.holm([one.p for one in tested if one.p is not None]))
    margin = study.params.evaluation.margin
    return [
        one if one.p is None else replace(one, outcome=outcome_of(one, next(adjusted), margin))
        for one in found
    ]


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
    strata = []
    for source in study.sources:
        of = (rows["source"] == source).to_numpy()
        strata.append(statistics.cluster_sums(rows["group"].to_numpy(str)[of], tokens[of], gap[of, None]))
    e = statistics.bootstrap(strata, np.random.default_rng([study.params.seed, len(form)]))
    low, high, p = (float(x[0]) if np.isfinite(x[0]) else None for x in (e.low, e.high, e.p))
    losses = judged["nll"].sum() / tokens.sum(), rows["nll"].sum() / tokens.sum()
    gain = gain_on(study, form, rows)
    return Served(name, form, len(rows), *losses, float(e.value[0]), low, high, p, gain)


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


def outcome_of(one: Served, p_holm: float, margin: float) -> Outcome:
    """Equivalent within the margin comes first: a small difference that is shown costs nothing that counts."""
    if one.low is None or one.high is None:
        return "undecided"
    if -margin < one.low and one.high < margin:
        return "equivalent"
    if p_holm < ALPHA and not one.low <= 0 <= one.high:
        return "better" if one.value < 0 else "worse"
    return "undecided"
