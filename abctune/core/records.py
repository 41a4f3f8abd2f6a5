"""The JSON documents that one stage writes and another reads: declared once, checked by the writer and the reader.

Every record is a frozen pydantic model. `write_record` and `read_record` are the only way in and out of a file, so a
field that one side renames is an error with the file's name in it, not a KeyError three modules further.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

import abctune
from abctune.core.errors import UserError
from abctune.core.files import read_json, read_jsonl, write_json, write_jsonl
from abctune.core.params import VARIANT_KEYS

OVERALL = "overall"  # the set of all sources but GENERAL
GENERAL = "general"  # the reserved source name of the rows that measure forgetting; no part of "overall"


class Record(BaseModel):
    """Base of all records: immutable, unknown fields are errors, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, record: type[AnyRecord], made_by: str) -> AnyRecord:
    """Read a record that the DVC stage `made_by` writes.

    Raises:
        UserError: the file is missing, is not JSON, or is not such a record (an older version's, for instance).
    """
    document = read_json(path, made_by)
    try:
        return record.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise _not_ours(path, error, made_by) from None


def read_records(path: Path, record: type[AnyRecord], made_by: str) -> list[AnyRecord]:
    """Read a file of one record per line.

    Raises:
        UserError: as read_record.
    """
    try:
        return [record.model_validate(row) for row in read_jsonl(path, made_by)]
    except ValidationError as error:
        raise _not_ours(path, error, made_by) from None


def _not_ours(path: Path, error: ValidationError, made_by: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    reason = "is missing" if first["type"] == "missing" else first["msg"][:1].lower() + first["msg"][1:]
    return UserError(
        f"{path} is not what this version writes ({key}: {reason}); run `dvc repro --force --single-item {made_by}`"
    )


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, a document with the version of abctune that made it."""
    if isinstance(record, Document) and record.abctune is None:
        record = record.model_copy(update={"abctune": abctune.__version__})
    write_json(path, record.model_dump(mode="json"))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one record per line; a field that was not given is left out."""
    write_jsonl(path, (record.model_dump(mode="json", exclude_unset=True) for record in records))


class Document(Record):
    """Base of records that describe one run of a stage: `write_record` notes the version of abctune.

    TrainingRecord has it among its `versions`. SourceRecord and SummaryRecord have none: what was fetched is the same
    bytes in every version, and a difference in them would train everything again; and `dvc exp show` makes a column of
    every value of the summary, next to which study.json has the version.
    """

    abctune: str | None = None  # None: made before it was recorded


class FileHash(Record):
    """One downloaded or copied file."""

    sha256: str
    bytes: int


class SourceRecord(Record):
    """`source.json`: where a source of data, or the base model, came from, exactly."""

    origin: str  # as params.yaml names it: hub, wheel, local
    license: str
    repo: str | None = None  # hub
    revision: str | None = None
    config: str | None = None  # of a hub's source, where params.yaml names one
    split: str | None = None
    package: str | None = None  # wheel
    version: str | None = None
    recipe: str | None = None  # of a wheel's source
    file: str | None = None  # of a wheel's model
    path: str | None = None  # local
    files: dict[str, FileHash] = Field(default_factory=dict)  # by name
    first_rows: int | None = None  # of a hub's source: what params.yaml limits it to
    rows: int | None = None  # of a source
    parameters: int | None = None  # of a model

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value not in (None, {})}

    @property
    def name(self) -> str:
        """What people call it: the repository, the package, or the path."""
        return self.repo or self.package or self.path or self.origin

    @property
    def pin(self) -> str:
        """The commit or version; empty for a local file, whose hash identifies it."""
        return self.revision or self.version or ""

    @property
    def full_name(self) -> str:
        """The name, with a wheel's version, as sentences use it."""
        return f"{self.name} {self.version}" if self.version else self.name


class Counted(Record):
    """Base of the data stages' counts: a reader takes what it knows and ignores counts added since."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DrawnRows(Counted):
    """Rows of one source in a variant's mix, and where they are from."""

    asked: int
    available: int
    drawn: int
    source: SourceRecord


class MixRecord(Document, Counted):
    """`data/mixed/<variant>.json`."""

    sources: dict[str, DrawnRows]
    warnings: tuple[str, ...] = ()


class FormattedRows(Counted):
    """Where each row of one source went: read = kept + duplicate + quarantined."""

    read: int
    kept: int
    duplicate: int
    examples: int  # of the kept rows: more than one each where the chat template rewrites earlier turns
    truncated: int  # of the kept ones: longer than max_length
    n_tokens: int
    n_supervised: int
    quarantined: dict[str, int]  # by reason
    repairs: dict[str, int] = Field(default_factory=dict)  # kept rows by what was mended in them

    @property
    def n_quarantined(self) -> int:
        """Rows that were refused."""
        return sum(self.quarantined.values())

    def line(self) -> str:
        """The counts for people."""
        mended = f"; {', '.join(f'{n:,} {kind}' for kind, n in self.repairs.items())}" if self.repairs else ""
        return (
            f"{self.read:,} read = {self.kept:,} kept + {self.duplicate:,} duplicate + {self.n_quarantined:,} quarantined; "
            f"{self.truncated:,} truncated{mended}"
        )


class Histogram(Counted):
    """Counts between edges, one edge more than there are counts; the last bar holds all that is longer."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Lengths(Counted):
    """Tokens per example before the cut at max_length."""

    max_length: int
    quantiles: dict[str, int] = Field(default_factory=dict)
    histogram: Histogram


class FormatRecord(Document, Counted):
    """`data/formatted/<variant>/summary.json`: what became of a variant's records."""

    sources: dict[str, FormattedRows]
    lengths: Lengths
    supervised_share: float  # of all tokens
    chat_template_sha256: str

    @property
    def kept(self) -> int:
        """Conversations over all sources."""
        return sum(source.kept for source in self.sources.values())

    @property
    def truncated(self) -> int:
        """Those that were cut at max_length."""
        return sum(source.truncated for source in self.sources.values())


class SplitRecord(Document, Counted):
    """`data/split/<variant>.json`."""

    sources: dict[str, dict[str, int]]  # train, val, test, contaminated


class Schedule(Record):
    """What the learning-rate schedule amounts to (stages/train/schedule.py)."""

    learning_rate: float
    warmup_steps: int
    max_steps: int
    peak_learning_rate: float
    peak_share: float  # of learning_rate
    decays: bool
    sum_learning_rate: float
    warnings: tuple[str, ...] = ()


class Exposure(Record):
    """What a training saw, by source."""

    conversations: dict[str, int]
    tokens: dict[str, int]
    supervised_tokens: dict[str, int]
    epochs: float


class Kept(Record):
    """Which step's adapter was kept, by which rule, and that rule's value there."""

    by: str
    step: int
    value: float | None


class FinalLosses(Record):
    """The last losses that were logged; eval_loss is None where the run evaluated nothing."""

    train_loss: float | None
    eval_loss: float | None


class TrainResources(Record):
    """What one replicate's training took."""

    seconds: float  # all of it, loading included
    train_seconds: float  # the training loop alone, as the student report's times are
    tokens_per_second: float  # without padding
    peak_rss_gib: float
    peak_reserved_gib: float | None  # GPU memory; None without a GPU

    @property
    def peak_gib(self) -> float:
        """GPU memory where there is a GPU, else the process's."""
        return self.peak_rss_gib if self.peak_reserved_gib is None else self.peak_reserved_gib


class ReplicateRecord(Record):
    """One adapter of a variant: the same recipe and rows, another training seed (first weights, order of the rows)."""

    replicate: int  # from 1
    seed: int
    kept: Kept
    final: FinalLosses
    resumed_at: tuple[int, ...] = ()  # the steps at which an interrupted run was taken up again
    # In float16: steps taken again, since a scaled gradient overflowed. Older records: such steps, left out.
    repeated_steps: int = Field(0, validation_alias=AliasChoices("repeated_steps", "skipped_steps"))
    resources: TrainResources


class TrainingRecord(Record):
    """`training.json`: everything that took effect when a variant was trained."""

    version: Literal[2] = 2
    variant: str
    base_model: SourceRecord
    arguments: dict[str, JsonValue]  # transformers' TrainingArguments as they took effect
    max_length: int
    load_in_4bit: bool
    dtype: str
    chat_template_sha256: str | None = (
        None  # of the template with its date and arguments; None: made before it was recorded
    )
    lora: dict[str, JsonValue]
    kernels: str = "Unsloth"  # or transformers, for models that Unsloth has none for
    unreached: str = ""  # kinds of layers that the adapter leaves as they are
    base_weights: str
    gradient_checkpointing: str
    micro_batching: dict[str, JsonValue]
    schedule: Schedule
    processes: int
    exposure: Exposure  # of replicate 1; the others see as many rows, drawn in another order
    replicates: tuple[ReplicateRecord, ...]
    published: int  # the replicate whose adapter is at models/<variant>
    at_once: int = 1  # replicates that trained at the same time, which each makes the others slower
    versions: dict[str, str]
    hardware: dict[str, JsonValue]

    @property
    def conversations_per_step(self) -> int:
        """2 x 8 and 4 x 4 make the same optimizer step."""
        return int(self.arguments["per_device_train_batch_size"]) * int(  # type: ignore[arg-type]
            self.arguments["gradient_accumulation_steps"]  # type: ignore[arg-type]
        )

    @property
    def published_replicate(self) -> ReplicateRecord:
        """The record of the replicate whose adapter is published."""
        return next(one for one in self.replicates if one.replicate == self.published)


class Metric(Record):
    """A quantity measured per conversation as (sum, weight); its value on a set of rows is sum / weight."""

    name: str  # "loss" is the first
    sum: str  # column of conversations.parquet
    weight: str  # column of conversations.parquet
    unit: str
    lower_is_better: bool = True
    is_share: bool = False  # of the weight: never below 0 nor above 1


LOSS = Metric(name="loss", sum="nll", weight="n_supervised", unit="nats per supervised token")


class SampleRecord(Record):
    """A line of samples.jsonl: one of the fixed prompts, answered."""

    prompt: str
    answer: str
    n_tokens: int
    stopped: bool  # by itself, before max_new_tokens
    repetition: float


class LiveSampleRecord(Record):
    """A line of a replicate's samples.jsonl: one of the fixed prompts, answered while it trains."""

    step: int
    epoch: float
    prompt: str
    answer: str


class TaskRecord(Record):
    """A line of tasks.jsonl: one checkable task, answered and checked."""

    id: str
    kind: str  # instructions or code; of a source's own check, that check's kind, as choice
    source: str | None = None  # whose test row it is; None: one of the project's own tasks
    prompt: str
    answer: str
    n_tokens: int
    stopped: bool
    checks: dict[str, bool]
    passed: bool  # all checks held
    expected: str | None = None  # the held-out reply, of a check on a source's rows; a label for kind choice
    predicted: str | None = None  # the label that the answer names


class Score(Record):
    """Loss on one set of rows, over all replicates."""

    loss: float
    perplexity: float
    n_conversations: int
    n_supervised: int


class Generation(Record):
    """The answers to the fixed prompts in four numbers."""

    n_prompts: int
    stop_rate: float  # share of answers that ended by themselves
    mean_new_tokens: float
    repetition: float


class CheckCount(Record):
    """How often one check was asked and held."""

    n: int
    passed: int


class PassRateRecord(Record):
    """One kind of checkable task: how many were asked and passed."""

    n: int
    passed: int
    share: float
    checks: dict[str, CheckCount]


class EvalResources(Record):
    """What scoring one model (all its replicates) took."""

    seconds: float
    peak_rss_gib: float
    peak_reserved_gib: float | None


class EvalRecord(Document):
    """`metrics/eval/<model>/metrics.json`."""

    version: Literal[2] = 2
    model: str
    test_of: str  # the variant whose test rows these are
    metrics: tuple[Metric, ...] = (LOSS,)
    replicates: int = 1
    published: int = 1  # the replicate that samples, tasks and served.parquet are of
    chat_template_sha256: str | None = None  # as in TrainingRecord
    overall: Score  # of all sources but GENERAL
    sources: dict[str, Score]  # GENERAL among them where it was scored
    generation: Generation
    tasks: dict[str, PassRateRecord]  # by kind; none where the profile asks for none
    own_checks: dict[str, PassRateRecord] = Field(default_factory=dict)  # by source (evaluation.checks)
    resources: EvalResources


class OwnCheckSummary(Record):
    """How a model does on one source's own check."""

    n: int
    passed: int
    won: int = 0  # rows that it passes and base does not
    lost: int = 0
    macro_f1: float | None = None  # of a choice among labels
    vs_base: str | None = None


class ModelSummary(Record):
    """One model's columns in `dvc exp show`."""

    loss: dict[str, float]  # by set: overall, each source, general
    tasks: dict[str, float] = Field(default_factory=dict)  # share passed, by kind
    vs_base: str | None = None  # "better by 0.16 [0.14, 0.19]"
    forgetting: str | None = None  # the same on general text
    checks: dict[str, OwnCheckSummary] = Field(default_factory=dict)  # by source
    untested: str | None = None  # trained on a source that no test row is of: what follows, and the remedy
    served: dict[str, str] = Field(default_factory=dict)  # by format: the same of what it costs


class SummaryRecord(Record):
    """`metrics/summary.json`: the few numbers that `dvc exp show` has columns for.

    In the file the models stand at the top level, so that a column is called `B.loss.overall`. They follow each model's
    overall loss (`loss.B`) and the verdicts, since DVC's table keeps the file's order and a terminal shows the first columns.
    """

    models: dict[str, ModelSummary]
    verdict: dict[str, str]  # "C_vs_B" -> the outcome overall

    def as_json(self) -> dict[str, Any]:
        """The file's content; what does not apply to a model is left out."""
        models = {
            name: model.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            for name, model in self.models.items()
        }
        losses = {name: model.loss[OVERALL] for name, model in self.models.items() if OVERALL in model.loss}
        return {"loss": losses, "verdict": dict(self.verdict), **models}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> SummaryRecord:
        """The record behind a file's content.

        Raises:
            ValueError: it is not such a record (pydantic's ValidationError), but one of an older version for instance.
        """
        models = {name: value for name, value in document.items() if name not in VARIANT_KEYS}
        return cls.model_validate({"models": models, "verdict": document.get("verdict", {})})


class SetRecord(Record):
    """A set of test rows."""

    name: str
    n: int  # conversations
    n_groups: int  # rows of a group share text
    n_supervised: int


class ValueRecord(Record):
    """A model's value of a metric on a set."""

    metric: str
    model: str
    on: str
    value: float
    low: float | None  # None: too few groups for an interval
    high: float | None
    by_replicate: tuple[float, ...]


class DifferenceRecord(Record):
    """One pair on one set: value(model) - value(reference), and what it is called."""

    metric: str
    model: str
    reference: str
    on: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None  # corrected for all differences of the study
    replicate_sd: float | None  # between replicates
    by_replicate: tuple[float, ...]
    outcome: Literal["better", "worse", "equivalent", "not worse", "undecided"]
    short: str  # "better by 0.12 [0.09, 0.15]"
    text: str  # a sentence


class TaskShareRecord(Record):
    """The share of one kind of tasks that a published adapter passes."""

    model: str
    kind: str  # as TaskRecord's
    source: str | None = None
    n: int
    passed: int
    low: float
    high: float


class TaskDifferenceRecord(Record):
    """One pair on one kind of tasks: share(model) - share(reference)."""

    model: str
    reference: str
    kind: str  # as TaskRecord's
    source: str | None = None
    value: float
    low: float
    high: float
    p_holm: float
    outcome: Literal["better", "worse", "not shown"]
    text: str


class ServedRecord(Record):
    """A published adapter on another base format: loss as served - loss as judged."""

    model: str
    format: str
    judged: float
    served: float
    value: float
    low: float | None
    high: float | None
    gain: float | None  # over base on this format
    outcome: Literal["better", "worse", "equivalent", "undecided"]
    text: str


class ExportRecord(Document):
    """`check.json` of an exported model: how far its next-token distributions are from the adapter's."""

    version: Literal[1] = 1
    variant: str  # or base, which has no adapter
    format: str
    positions: int  # where the two were compared
    mean_kl: float  # Kullback-Leibler divergence of the file from the adapter, in nats; over the positions
    max_kl: float
    adapter_loss: float  # nats per token, at the same positions
    file_loss: float
    tolerance: float  # of mean_kl, above which nothing is published
    bytes: int  # of all files in the folder, before this one


class StudyRecord(Document):
    """`metrics/study.json`: the whole comparison, for the tools and the app. `dvc exp show` reads SummaryRecord."""

    version: Literal[1] = 1
    profile: str
    test_of: str
    margin: float  # nats per token
    replicated: bool  # whether the differences are of recipes; else of one adapter each
    replicates: dict[str, int]
    headlines: tuple[str, ...]
    sets: tuple[SetRecord, ...]
    values: tuple[ValueRecord, ...]
    differences: tuple[DifferenceRecord, ...]
    tasks: tuple[TaskShareRecord, ...]
    task_differences: tuple[TaskDifferenceRecord, ...]
    served: tuple[ServedRecord, ...]

    def difference(self, model: str, reference: str, on: str, metric: str = LOSS.name) -> DifferenceRecord:
        """One pair on one set.

        Raises:
            KeyError: the study has no such difference.
        """
        wanted = (model, reference, on, metric)
        for d in self.differences:
            if (d.model, d.reference, d.on, d.metric) == wanted:
                return d
        raise KeyError(wanted)
