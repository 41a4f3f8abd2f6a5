"""The numbers for machines: metrics/summary.json for `dvc metrics` and `dvc exp show`, CSVs for `dvc plots`."""

from __future__ import annotations

import pandas as pd

from abctune.core.params import BASE
from abctune.core.records import GENERAL, LOSS, ModelSummary, SummaryRecord
from abctune.study.comparison import Comparison
from abctune.study.coverage import untested
from abctune.study.inputs import CURVES, OVERALL, Study, Trained
from abctune.study.own import own_summaries, source_checks
from abctune.study.served import Served
from abctune.study.tasks import TaskComparison
from abctune.study.verdicts import Verdict

SHORT = {"instructions": "pass"}  # B.tasks.pass: the share of the project's own tasks that B passes
DIGITS = (
    4  # of a loss in nats: below any interval, and the same where two machines' arithmetic differs in the 6th
)


def summary(
    study: Study,
    comparison: Comparison,
    verdicts: list[Verdict],
    tasks: TaskComparison,
    served: list[Served],
) -> SummaryRecord:
    """Few, short keys. Nothing in it depends on when, where or on which commit the stage ran."""
    shorts = {
        (v.difference.pair, v.difference.on.name): v.short
        for v in verdicts
        if v.difference.metric.name == LOSS.name
    }
    checks, missed = source_checks(study), untested(study)
    models = {
        name: ModelSummary(
            loss={on.name: round(comparison.value(name, on.name).value, DIGITS) for on in comparison.sets},
            tasks={
                SHORT.get(on.kind, on.kind): round(tasks.rate(name, *on).value, 3)
                for on in tasks.sets
                if on.source is None
            },
            vs_base=shorts.get(((name, BASE), OVERALL)),
            forgetting=shorts.get(((name, BASE), GENERAL)),
            checks=own_summaries(checks, tasks, name),
            untested=missed.get(name),
            served={one.format: one.text for one in served if one.model == name},
        )
        for name in study.models
    }
    words = {
        f"{model}_vs_{reference}": shorts[(model, reference), OVERALL]
        for model, reference in comparison.pairs
        if reference != BASE
    }
    return SummaryRecord(models=models, verdict=words)


def mean_curve(trained: Trained, name: str) -> pd.DataFrame:
    """The curve's mean over replicates, step by step; no rows where nothing was logged."""
    logged = pd.concat([curves[name].dropna() for curves in trained.curves.values()])
    return logged.groupby("step", as_index=False)[name].mean()


def plot_tables(study: Study, comparison: Comparison) -> dict[str, pd.DataFrame]:
    """One table per chart of `dvc plots`, in long form, rounded so that nothing below a drawn pixel changes them."""
    tables = {name: long_curve(study.trained, name) for name in CURVES}
    columns = ["model", "source", "loss", "low", "high"]
    rows = [
        (v.model, v.on.name, v.value, v.low, v.high) for v in comparison.values if v.metric.name == LOSS.name
    ]
    losses = pd.DataFrame(rows, columns=columns).round(DIGITS)
    return tables | {"test_loss": losses}


def long_curve(trained: dict[str, Trained], name: str) -> pd.DataFrame:
    """Columns `step`, `variant` and the curve's name: a chart of it shows a new variant without an edit of dvc.yaml.

    A variant that logged nothing has one row without numbers: so it takes its color in every chart.
    """
    curves = [(variant, mean_curve(run, name)) for variant, run in trained.items()]
    tables = [
        curve.assign(variant=variant) if len(curve) else pd.DataFrame({"variant": [variant]})
        for variant, curve in curves
    ]
    table = pd.concat(tables).reindex(columns=["step", "variant", name]).astype({"step": "Int64"})
    return table if name == "learning_rate" else table.round({name: DIGITS})
