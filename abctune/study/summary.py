"""The numbers for machines: metrics/summary.json for `dvc metrics` and `dvc exp show`, CSVs for `dvc plots`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from abctune.core.params import BASE
from abctune.study.comparison import Comparison
from abctune.study.inputs import CURVES, OVERALL, Study, Trained
from abctune.study.tasks import TaskComparison
from abctune.study.verdicts import Verdict

SHORT = {"instructions": "pass"}  # B.tasks.pass: the share of the project's own tasks that B passes
DIGITS = 5  # of a loss in nats: far below any interval, and short in a terminal


def summary(
    study: Study, comparison: Comparison, verdicts: list[Verdict], tasks: TaskComparison
) -> dict[str, Any]:
    """Few, short keys. Nothing in it depends on when, where or on which commit the stage ran."""
    models: dict[str, Any] = {}
    for name in study.models:
        losses = {on.name: comparison.loss(name, on.name).value for on in comparison.sets}
        models[name] = {"test": {"nll": round(losses.pop(OVERALL), DIGITS)}}
        models[name] |= {source: {"nll": round(value, DIGITS)} for source, value in losses.items()}
        if tasks.kinds:
            shares = {kind: round(tasks.rate(name, kind).value, 3) for kind in tasks.kinds}
            models[name]["tasks"] = {SHORT.get(kind, kind): share for kind, share in shares.items()}
        if name != BASE:
            models[name]["vs_base"] = round(comparison.difference(name, BASE, OVERALL).value, DIGITS)
            models[name]["train"] = training_numbers(study.trained[name])
    overall = [verdict for verdict in verdicts if verdict.difference.on.name == OVERALL]
    words = {f"{v.difference.model}_vs_{v.difference.reference}": v.short for v in overall}
    task_words = {
        f"{d.model}_vs_{d.reference}": d.short for d in tasks.differences if d.kind == "instructions"
    }
    return models | {"verdict": words} | ({"task_verdict": task_words} if task_words else {})


def training_numbers(trained: Trained) -> dict[str, float]:
    resources = trained.record["resources"]
    return {
        "seconds": round(train_seconds(resources), 1),
        "loss": round(trained.record["final"]["train_loss"], DIGITS),
        "tokens_per_second": round(resources["tokens_per_second"], 1),
        "peak_gib": round(peak_gib(resources), 3),
    }


def train_seconds(resources: dict[str, Any]) -> float:
    """Of the training loop where that is known apart from imports and loading, as the student report's times are."""
    return resources.get("train_seconds", resources["seconds"])


def peak_gib(resources: dict[str, Any]) -> float:
    """GPU memory where there is a GPU, else the process's."""
    reserved = resources.get("peak_reserved_gib")
    return resources["peak_rss_gib"] if reserved is None else reserved


def plot_tables(study: Study, comparison: Comparison) -> dict[str, pd.DataFrame]:
    """One table per chart of `dvc plots`, in long form."""
    tables = {name: long_curve(study.trained, name) for name in CURVES}
    columns = ["model", "source", "loss", "low", "high"]
    rows = [(loss.model, loss.on.name, loss.value, loss.low, loss.high) for loss in comparison.losses]
    return tables | {"test_loss": pd.DataFrame(rows, columns=columns)}


def long_curve(trained: dict[str, Trained], name: str) -> pd.DataFrame:
    """Columns `step`, `variant` and the curve's name: a chart of it shows a new variant without an edit of dvc.yaml.

    A variant that logged nothing has one row without numbers: so it takes its colour in every chart.
    """
    curves = [run.curves[name].dropna().assign(variant=variant) for variant, run in trained.items()]
    curves = [
        curve if len(curve) else pd.DataFrame({"variant": [variant]})
        for variant, curve in zip(trained, curves, strict=True)
    ]
    return pd.concat(curves).reindex(columns=["step", "variant", name]).astype({"step": "Int64"})
