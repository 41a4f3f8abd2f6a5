"""The numbers for machines: metrics/summary.json for `dvc metrics` and `dvc exp show`, CSVs for `dvc plots`."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pandas as pd

from stages.common.params import BASE
from stages.plot.comparison import Comparison
from stages.plot.inputs import CURVES, OVERALL, Study, Trained
from stages.plot.verdicts import Verdict

DIGITS = 5  # of a loss in nats: far below any interval, and short in a terminal


def summary(study: Study, comparison: Comparison, verdicts: list[Verdict]) -> dict[str, Any]:
    """Few, short keys. Nothing in it depends on when, where or on which commit the stage ran."""
    models: dict[str, Any] = {}
    for name in study.models:
        losses = {on.name: comparison.loss(name, on.name).value for on in comparison.sets}
        models[name] = {"test": {"nll": round(losses.pop(OVERALL), DIGITS)}}
        models[name] |= {source: {"nll": round(value, DIGITS)} for source, value in losses.items()}
        if name != BASE:
            models[name]["vs_base"] = round(comparison.difference(name, BASE, OVERALL).value, DIGITS)
            models[name]["train"] = training_numbers(study.trained[name])
    overall = [verdict for verdict in verdicts if verdict.difference.on.name == OVERALL]
    words = {f"{v.difference.model}_vs_{v.difference.reference}": v.short for v in overall}
    return models | {"verdict": words}


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
    """One table per chart of `dvc plots`: wide curves, a column per variant, and the test losses in long form."""
    tables = {name: wide_curve(study.trained, name) for name in CURVES}
    columns = ["model", "source", "loss", "low", "high"]
    rows = [(loss.model, loss.on.name, loss.value, loss.low, loss.high) for loss in comparison.losses]
    return tables | {"test_loss": pd.DataFrame(rows, columns=columns)}


def wide_curve(trained: dict[str, Trained], name: str) -> pd.DataFrame:
    """`step` and a column per variant; empty where a variant logged nothing at that step."""
    curves = [run.curves[name].rename(columns={name: variant}) for variant, run in trained.items()]
    merged = reduce(lambda left, right: left.merge(right, on="step", how="outer"), curves)
    return merged.astype({"step": int}).sort_values("step", ignore_index=True)
