"""Whether models may be compared: scored on exactly the same rows, tokens, prompts and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pandas as pd

from abctune.core.errors import UserError
from abctune.core.params import Params
from abctune.core.records import GENERAL, EvalRecord, SampleRecord, TaskRecord


class Scored(Protocol):
    """What of an evaluated model the comparison's fairness depends on."""

    @property
    def record(self) -> EvalRecord:
        """The model's metrics.json."""

    @property
    def conversations(self) -> pd.DataFrame:
        """One row per conversation and replicate."""

    @property
    def samples(self) -> list[SampleRecord]:
        """The answers to the fixed prompts."""

    @property
    def tasks(self) -> list[TaskRecord]:
        """The checked answers."""


def require_same_test(models: Mapping[str, Scored]) -> None:
    """Refuse to compare models that were not scored on exactly the same rows, tokens and prompts.

    Raises:
        UserError: two were not; the message names them.
    """
    reference, first = next(iter(models.items()))
    for name, model in models.items():
        if fault := test_fault(first, model):
            raise UserError(
                f"unfair comparison: {reference} and {name} {fault}; "
                f"`dvc repro` scores both on the test rows of evaluation.test_of"
            )


def test_fault(first: Scored, other: Scored) -> str | None:
    """What makes two models' results incomparable, in words, or None."""
    a, b = first.record, other.record
    if a.test_of != b.test_of:
        return f"were scored on the test rows of {a.test_of} and of {b.test_of}"
    if a.metrics != b.metrics:
        return "were scored with different metrics"
    weights = tuple(dict.fromkeys(metric.weight for metric in a.metrics))
    if fault := test_fault_of_rows(first.conversations, other.conversations, weights):
        return fault
    if [sample.prompt for sample in first.samples] != [sample.prompt for sample in other.samples]:
        return "answered different prompts"
    if [(t.kind, t.source, t.prompt) for t in first.tasks] != [
        (t.kind, t.source, t.prompt) for t in other.tasks
    ]:
        return "were asked different tasks"
    return None


def test_fault_of_rows(
    a: pd.DataFrame, b: pd.DataFrame, weights: tuple[str, ...] = ("n_supervised",)
) -> str | None:
    """What makes two models' tables of conversations (sorted by id) incomparable, in words, or None."""
    if different := len(set(a["id"]) ^ set(b["id"])):
        return f"were scored on different rows ({different:,} of them were scored for one of the two only)"
    names = {"source": "sources", "group": "groups", "n_supervised": "numbers of supervised tokens"}
    for column in ("source", "group", *weights):
        if different := int((a[column].to_numpy() != b[column].to_numpy()).sum()):
            what = names.get(column, f"values of {column}")
            return f"have different {what} for {different:,} of the {len(a):,} rows"
    return None


def require_known_sources(test: pd.DataFrame, params: Params) -> None:
    """Every test row comes from a source of params.yaml, or is general text.

    Raises:
        UserError: some are from elsewhere.
    """
    if unknown := sorted(set(test["source"]) - set(params.sources) - {GENERAL}):
        raise UserError(
            f"the test rows come from {', '.join(unknown)}, which params.yaml's sources lack; run `dvc repro`"
        )
