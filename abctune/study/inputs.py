"""Everything the comparison reads, as typed records and tables, and whether models may be compared.

They may where they were scored on exactly the same rows, tokens, prompts and tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from abctune.core import files
from abctune.core.errors import UserError
from abctune.core.params import BASE, Params, exported_stage
from abctune.core.places import COLLECTED, EVAL
from abctune.core.places import SERVED as SCORED_EXPORTS
from abctune.core.records import (
    GENERAL,
    EvalRecord,
    FormatRecord,
    Metric,
    MixRecord,
    SampleRecord,
    SourceRecord,
    SplitRecord,
    TaskRecord,
    TrainingRecord,
    read_record,
    read_records,
)
from abctune.core.records import OVERALL as OVERALL
from abctune.core.schemas import SCORED_ROWS, SERVED
from abctune.study.votes import VoteRecord, read_votes

CURVES = {"train_loss": "train/loss", "eval_loss": "eval/loss", "learning_rate": "train/learning_rate"}

Curves = dict[str, pd.DataFrame]  # by name; columns step and that name, no rows where nothing was logged
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """One model's results on the common test rows, all its replicates."""

    rows: pd.DataFrame  # SCORED_ROWS and the metrics' columns; sorted by replicate, then id
    record: EvalRecord
    samples: list[SampleRecord]  # of the published replicate, as are tasks and served
    tasks: list[TaskRecord]
    served: pd.DataFrame  # columns SERVED; no rows where nothing was scored as served

    @property
    def replicates(self) -> list[int]:
        """The replicates' numbers, ascending."""
        return [int(one) for one in self.rows["replicate"].unique()]

    @property
    def conversations(self) -> pd.DataFrame:
        """The test rows once, as scored by the first replicate; sorted by id."""
        return self.of(self.replicates[0])

    def of(self, replicate: int) -> pd.DataFrame:
        """One replicate's rows, sorted by id."""
        return self.rows[self.rows["replicate"] == replicate].reset_index(drop=True)

    def sums(self, metric: Metric) -> Floats:
        """The metric's sum per conversation (replicates x conversations)."""
        sums: Floats = self.rows[metric.sum].to_numpy(float)
        return sums.reshape(len(self.replicates), -1)


@dataclass(frozen=True)
class Trained:
    """One variant's training, and what is known of its data."""

    record: TrainingRecord
    curves: dict[int, Curves]  # by replicate
    mixed: MixRecord
    formatted: FormatRecord
    split: SplitRecord


@dataclass(frozen=True)
class Study:
    """All models of params.yaml, base first, all scored on the same rows."""

    params: Params
    models: dict[str, Evaluated]
    trained: dict[str, Trained]  # the variants
    votes: list[VoteRecord] = field(default_factory=list)  # people's, blind

    @property
    def test_rows(self) -> pd.DataFrame:
        """The common test rows: id, group, source."""
        return self.models[BASE].conversations

    @property
    def sources(self) -> list[str]:
        """The sources in the test set, in params.yaml's order; GENERAL is none."""
        present = set(self.test_rows["source"])
        return [name for name in self.params.sources if name in present]

    @property
    def sets(self) -> dict[str, list[str]]:
        """The sets of rows that are compared, each with the sources it is made of."""
        general = {GENERAL: [GENERAL]} if (self.test_rows["source"] == GENERAL).any() else {}
        return {OVERALL: self.sources} | {name: [name] for name in self.sources} | general

    @property
    def metrics(self) -> Sequence[Metric]:
        """What was measured; the loss first."""
        return self.models[BASE].record.metrics

    @property
    def origins(self) -> dict[str, SourceRecord]:
        """Where each source that a variant draws on is from, in params.yaml's order."""
        found = {
            name: drawn.source for run in self.trained.values() for name, drawn in run.mixed.sources.items()
        }
        return {name: found[name] for name in self.params.sources if name in found}


def read_study(params: Params) -> Study:
    """Read all inputs.

    Raises:
        UserError: a required file is missing or damaged, or the models were not scored on the same rows.
    """
    folders = {BASE: EVAL / BASE} | {name: COLLECTED / name / "eval" for name in params.variants}
    models = {name: read_evaluated(name, folder) for name, folder in folders.items()}
    if params.export.variants:
        for name in (BASE, *params.export.variants):
            models[name] = with_exports(models[name], name, params)
    require_same_test(models)
    require_known_sources(models[BASE].conversations, params)
    trained = {name: read_trained(name) for name in params.variants}
    return Study(params, models, trained, read_votes())


def made_by(model: str) -> str:
    """The stage that writes a model's part of the inputs."""
    return "eval-base" if model == BASE else f"collect@{model}"


def read_evaluated(model: str, folder: Path) -> Evaluated:
    """Read what eval wrote about one model.

    Args:
        folder: metrics/eval/<model>, or the collected copy of it.

    Raises:
        UserError: a file is missing or damaged, or a conversation was not scored once by each replicate.
    """
    stage, path = made_by(model), folder / "conversations.parquet"
    record = read_record(folder / "metrics.json", EvalRecord, stage)
    columns = dict.fromkeys(column for metric in record.metrics for column in (metric.sum, metric.weight))
    table = files.read_table(path, stage, [*SCORED_ROWS.names, *columns])
    rows = table.to_pandas().sort_values(["replicate", "id"], ignore_index=True)
    if fault := fault_of_scores(rows, record.metrics):
        raise UserError(
            f"{path} {fault}; run `dvc repro --force --single-item {stage.replace('collect', 'eval')}`"
        )
    samples = read_records(folder / "samples.jsonl", SampleRecord, stage)
    tasks = read_records(folder / "tasks.jsonl", TaskRecord, stage)
    served = folder / "served.parquet"
    table = files.read_table(served, stage, SERVED.names) if served.exists() else SERVED.empty_table()
    return Evaluated(rows, record, samples, tasks, table.to_pandas())


def with_exports(model: Evaluated, variant: str, params: Params) -> Evaluated:
    """A model with the rows of its exported files among those of the formats that it is served in.

    Raises:
        UserError: a file of `export` was not scored.
    """
    tables = [
        files.read_table(
            SCORED_EXPORTS / variant / f"{form}.parquet",
            exported_stage("served", variant, form),
            SERVED.names,
        ).to_pandas()
        for form in params.export.formats
    ]
    return replace(model, served=pd.concat([model.served, *tables], ignore_index=True)) if tables else model


def fault_of_scores(rows: pd.DataFrame, metrics: Sequence[Metric]) -> str | None:
    """What makes a table of scores unusable, in words, or None."""
    if rows.empty:
        return "holds no conversations"
    for metric in metrics:
        if not (np.isfinite(rows[metric.sum]) & (rows[metric.weight] > 0)).all():
            what = "supervised tokens" if metric.weight == "n_supervised" else metric.weight
            return f"has a conversation without a finite {metric.sum} or without {what}"
    if rows.duplicated(["replicate", "id"]).any():
        return "scores one conversation twice"
    counts = rows.groupby("replicate")["id"].agg(["size", "nunique"])
    if len(counts.drop_duplicates()) > 1 or rows["id"].nunique() != counts["size"].iloc[0]:
        return "has replicates that were scored on different rows"
    return None


def read_trained(variant: str) -> Trained:
    """Read what is known of a variant's training and data.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder, stage = COLLECTED / variant, made_by(variant)
    record = read_record(folder / "training.json", TrainingRecord, stage)
    return Trained(
        record,
        {
            one.replicate: read_curves(folder / "train" / str(one.replicate), stage)
            for one in record.replicates
        },
        mixed=read_record(folder / "mixed.json", MixRecord, stage),
        formatted=read_record(folder / "formatted.json", FormatRecord, stage),
        split=read_record(folder / "split.json", SplitRecord, stage),
    )


def read_curves(live: Path, stage: str) -> Curves:
    """The curves that DVCLive wrote to a folder; the train loss must be there."""
    return {
        name: read_curve(live / "plots/metrics" / f"{file}.tsv", name, stage, required=name == "train_loss")
        for name, file in CURVES.items()
    }


def read_curve(path: Path, name: str, stage: str, required: bool) -> pd.DataFrame:
    """A DVCLive curve: `step` and the value, one row per step, renamed to `name`."""
    if not path.exists() and not required:
        return pd.DataFrame({"step": [], name: []})
    with files.reading(path, stage):
        table = pd.read_csv(path, sep="\t")
        return (
            table[["step", path.stem]]
            .astype({"step": int, path.stem: float})
            .rename(columns={path.stem: name})
            .drop_duplicates("step", keep="last")
        )


def require_same_test(models: Mapping[str, Evaluated]) -> None:
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


def test_fault(first: Evaluated, other: Evaluated) -> str | None:
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
