"""params.yaml as typed, checked, frozen objects. The only place that reads it.

Every value is checked when the file is loaded, for the active profile and the others alike, so that a
mistake is an error that names its key before any work starts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import regex
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from abctune.core.errors import UserError

PARAMS_FILE = Path("params.yaml")
BASE = "base"  # the untuned model's name beside the variants
# Keys of metrics/summary.json that stand next to the models' and to the sources' names.
VARIANT_KEYS = ("loss", "verdict")
SOURCE_KEYS = ("overall", "general")
# Keys become file names, and people type them in commands, hence nothing but these characters;
# no dot either, which DVC reads as a step into a mapping.
KEY = re.compile(r"[A-Za-z0-9_-]+")


def item_of(stage: str) -> str:
    """The item of a foreach stage's name: `B` of `train@B`. A name without `@` is returned as it is.

    DVC puts the stage's name into the environment variable DVC_STAGE. The commands in dvc.yaml contain no ${key}:
    DVC would paste it into a shell command, where a key such as `x; touch y` runs before it can be refused here.
    """
    return stage.rpartition("@")[2]


def key_from_dvc() -> str | None:
    """The foreach item that DVC is running, `B` of its stage `train@B`; None outside a foreach stage."""
    stage = os.environ.get("DVC_STAGE", "")
    return item_of(stage) if "@" in stage else None


ItemArgument = Annotated[
    str,
    typer.Argument(
        envvar="DVC_STAGE",
        parser=item_of,
        metavar="VARIANT",
        show_default=False,
        help="a name under `variants` in params.yaml; DVC sets it",
    ),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Words of pip's command line: no option, no address.
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Version = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+!-]*$")]
# The model's own, one that abctune brings, or a file of the user's own.
ChatTemplate = Annotated[str, Field(pattern=r"^(model|llama-3\.1|chatml-tools|models/own/[\w./-]+\.jinja)$")]
# Arguments of a chat template become variables inside it.
TemplateArguments = dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], bool | int | str]
ExportFormat = Literal["merged_16bit", "f16", "q8_0", "q4_k_m"]
BaseFormat = Literal["4bit", "16bit"]  # NF4 as QLoRA trains on it; bfloat16, or float16 where a GPU lacks it


def _below(path: str, folder: tuple[str, str]) -> str:
    parts = Path(path).parts
    if parts[:2] != folder or len(parts) < 3 or ".." in parts:
        raise ValueError(
            f"{path!r} must lie under {'/'.join(folder)}/, the folder that DVC watches; copy it there"
        )
    return path


class _Model(_Section):
    """What every model has, wherever it comes from."""

    license: str
    chat_template: ChatTemplate = "model"
    template_args: TemplateArguments = {}  # as `enable_thinking: false`, which Qwen3's template knows

    @field_validator("chat_template")
    @classmethod
    def _template_inside_own(cls, chat_template: str) -> str:
        return chat_template if "/" not in chat_template else _below(chat_template, ("models", "own"))

    @property
    def template(self) -> dict[str, Any]:
        """The arguments of abctune.llm.tokenizer.load_tokenizer that params decide."""
        return {"chat_template": self.chat_template, "template_args": self.template_args}

    @property
    def exactly(self) -> str:
        """Which model it is, to the version."""
        raise NotImplementedError


class HubModel(_Model):
    """A model repository on a Hugging Face hub, at one commit."""

    origin: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

    @property
    def exactly(self) -> str:
        """Repository and commit."""
        return f"{self.repo} @ {self.revision}"


class HubSource(_Section):
    """Data of a dataset repository on a Hugging Face hub, at one commit: by files, or by config and split."""

    origin: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: tuple[str, ...] = ()  # names or globs, as data/train-*.parquet
    config: str | None = None  # as the repository's README names it; needs `split`
    split: str | None = None  # as `datasets` would load it: train, test, ...
    license: str
    group_by: str | None = None  # a column whose equal values must stay in one subset of the split

    @model_validator(mode="after")
    def _files_or_split(self) -> HubSource:
        if bool(self.files) == bool(self.split) or (self.config and not self.split):
            raise ValueError(
                "name either `files`, or `split` (with `config` where the repository has several)"
            )
        return self


class WheelModel(_Model):
    """A GGUF model inside a PyPI wheel."""

    origin: Literal["wheel"]
    package: Package
    version: Version
    sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    file: str

    @property
    def exactly(self) -> str:
        """File, package and version."""
        return f"{self.file} of {self.package} {self.version}"


class WheelSource(_Section):
    """Records that a recipe (stages/fetch/wheel.py) takes out of a PyPI wheel."""

    origin: Literal["wheel"]
    package: Package
    version: Version
    sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    recipe: Literal["chitchat", "ruff_rules", "docstrings"]
    license: str


class LocalModel(_Model):
    """A model folder of the user's own under models/own/, which DVC watches: safetensors, config and tokenizer."""

    origin: Literal["local"]
    path: str

    @field_validator("path")
    @classmethod
    def _inside_own(cls, path: str) -> str:
        return _below(path, ("models", "own"))

    @property
    def exactly(self) -> str:
        """A folder has no version of its own; its hash is in source.json."""
        return "a model of our own"


DATA_SUFFIXES = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
)  # the first four also with .gz or .zst


class LocalSource(_Section):
    """Data files of the user's own, under data/own/ so that DVC sees them change."""

    origin: Literal["local"]
    path: (
        str | Annotated[tuple[str, ...], Field(min_length=1)]
    )  # a file, a folder, a glob, or several of them
    split: str | None = None  # of a folder that `datasets` saved, if it has several
    license: str = "own data"
    group_by: str | None = None  # a column whose equal values must stay in one subset of the split

    @field_validator("path")
    @classmethod
    def _inside_own(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (path,) if isinstance(path, str) else path:
            _below(one, ("data", "own"))
            suffixes = [suffix for suffix in Path(one).suffixes if suffix not in (".gz", ".zst")]
            if suffixes and suffixes[-1] not in DATA_SUFFIXES and "*" not in suffixes[-1]:
                raise ValueError(
                    f"{one!r} must end in {', '.join(DATA_SUFFIXES[:-1])} or {DATA_SUFFIXES[-1]}, or be a folder"
                )
        return path

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


ModelOrigin = Annotated[HubModel | WheelModel | LocalModel, Field(discriminator="origin")]
SourceOrigin = Annotated[HubSource | WheelSource | LocalSource, Field(discriminator="origin")]


# The parts of a row that `columns` can map a column to.
Part = Literal["messages", "system", "user", "context", "reasoning", "assistant", "history", "tools"]


class SourceParams(_Section):
    """What a row of the source looks like, wherever it comes from, and which of its replies are learned."""

    schema_: Annotated[Literal["auto", "sharegpt", "alpaca", "messages"], Field(alias="schema")] = "auto"
    columns: dict[Part, str] = {}  # part of a row -> the column that holds it, for names that are not known
    ignore: tuple[str, ...] = ()  # columns and keys of turns that may be left out of training
    supervise: Literal["all", "last"] = "all"  # which replies of a conversation are learned
    history: Literal["supervised", "context"] = (
        "supervised"  # replies in a `history` column: learned, or read only
    )
    overlong: Literal["cut", "drop"] = "cut"  # rows of more than max_length tokens
    max_quarantined: Annotated[float, Field(ge=0, le=1)] | None = None  # in place of format.max_quarantined


class DataParams(_Section):
    """How much data the profile takes, and how long a conversation may be."""

    max_length: Annotated[int, Field(ge=8, strict=True)]  # tokens; longer conversations are cut
    rows_scale: Positive  # multiplies every variant's rows per source


class SplitParams(_Section):
    """Shares of the hash space that are held out; what is left is for training."""

    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitParams:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test = {self.val + self.test:g} leaves nothing to train on; keep it below 1"
            )
        return self


class ContaminationParams(_Section):
    """When a training row counts as a copy of a held-out one."""

    near: Annotated[float, Field(gt=0, le=1)]  # Jaccard similarity of 5-grams
    common: Annotated[
        float, Field(gt=0, le=1)
    ]  # n-grams of more than this share of the held-out rows are no sign of it


class EvalParams(_Section):
    """How much each model is asked, and the memory that scoring may use."""

    batch_tokens: Count  # tokens per forward pass, padding included
    max_new_tokens: Count  # of each answer
    task_prompts: Whole  # how many of the project's own tasks are asked; 0: none
    code_rows: Whole  # how many held-out "improve this Python code" rows are asked, where there are any
    general_windows: Whole  # how many pieces of general text are scored; 0: none
    general_tokens: Annotated[int, Field(ge=16, strict=True)]  # tokens of such a piece
    served_formats: tuple[
        BaseFormat, ...
    ]  # of the base model, on which published adapters are scored in addition


# Those of transformers that treat every number of an adapter alike, since all of them are one flat tensor: not Adafactor,
# which looks at rows and columns.
Optimizer = Literal[
    "adamw_8bit",
    "adamw_torch",
    "adamw_torch_fused",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "sgd",
]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class TrainParams(_Section):
    """The resolved recipe of one variant. Field names are those of transformers' TrainingArguments.

    How long it trains is said by one of `max_steps` and `num_train_epochs`.
    """

    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    max_steps: Count | None = None
    num_train_epochs: Positive | None = None
    learning_rate: Positive
    learning_rate_scale: Positive
    warmup_steps: Whole
    logging_steps: Count
    eval_steps: Whole  # 0: no evaluation while training
    optim: Optimizer
    weight_decay: Annotated[float, Field(ge=0)]
    lr_scheduler_type: Scheduler
    lr_scheduler_kwargs: dict[str, float | int | str | bool] = {}  # what some schedules take in addition
    max_grad_norm: Annotated[float, Field(ge=0)]
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_epsilon: Positive
    neftune_noise_alpha: Annotated[float, Field(ge=0)]  # noise on the embeddings while training; 0: none
    sample_every: Whole  # optimizer steps between live generations; 0: epoch ends and the last step only
    save_steps: Whole  # optimizer steps between checkpoints to resume from; 0: only when told to stop
    keep: Literal["train_loss", "eval_loss", "last"]
    publish: Literal["first", "lowest_eval_loss"]  # which replicate's adapter is the variant's published one
    load_in_4bit: bool
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    gradient_checkpointing: Literal["auto", "unsloth", "standard", "none"]
    packing: Literal["auto"] | bool = "auto"  # several conversations in one row without padding
    sharding: Literal["auto", "fsdp", "none"]  # the base model split over the training's processes

    @model_validator(mode="after")
    def _has_the_loss_it_goes_by(self) -> TrainParams:
        if needs := self._lacks_eval_loss():
            raise ValueError(needs)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainParams:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError(
                "set max_steps or num_train_epochs, one of them; remove the other or set it to null"
            )
        return self

    def _lacks_eval_loss(self) -> str | None:
        """What is wrong, in words, where an adapter is to be chosen by a loss that the run never measures; or None."""
        for rule, value in (("keep: eval_loss", self.keep), ("publish: lowest_eval_loss", self.publish)):
            if value != rule.split(": ")[1]:
                continue
            if not self.eval_steps:
                return f"{rule} needs eval_steps above 0, so that there is an eval loss to go by"
            if self.max_steps is not None and self.eval_steps > self.max_steps:
                return (
                    f"{rule} needs an eval loss to go by, and eval_steps {self.eval_steps} is more than the run's "
                    f"{self.max_steps} steps; lower eval_steps"
                )
        return None

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; ask `with_steps` for a recipe that knows them."""
        assert self.max_steps is not None
        return self.max_steps

    @property
    def conversations_per_step(self) -> int:
        """How many conversations one optimizer step takes, over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def with_steps(self, rows: int) -> TrainParams:
        """The recipe with `num_train_epochs` over `rows` conversations as `max_steps`, as the Trainer counts them.

        The last step of an epoch takes the conversations that are left.

        Raises:
            UserError: so many steps end before the first evaluation, by which an adapter is to be chosen.
        """
        if self.num_train_epochs is None:
            return self
        steps = math.ceil(self.num_train_epochs * math.ceil(rows / self.conversations_per_step))
        resolved = self.model_copy(update={"max_steps": steps})
        if needs := resolved._lacks_eval_loss():
            raise UserError(f"{PARAMS_FILE}: train: {needs}")
        return resolved

    @property
    def peak_learning_rate(self) -> float:
        """The optimizer's rate if warmup ends: learning_rate x learning_rate_scale."""
        return self.learning_rate * self.learning_rate_scale


class LoraParams(_Section):
    """The adapter: names and meanings are those of PEFT's LoraConfig."""

    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    use_rslora: bool  # scaling lora_alpha / sqrt(r) instead of lora_alpha / r
    use_dora: bool  # magnitude and direction of the weights trained separately
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]


class FormatParams(_Section):
    """Limits of the format stage."""

    max_quarantined: Annotated[float, Field(ge=0, le=1)]


class _OwnCheck(_Section):
    """What every check on a source's answers has."""

    rows: Count = 100  # test rows that are asked, one of each group; fewer where the source has fewer
    max_new_tokens: Count | None = None  # of each answer; None: the profile's


class TextCheck(_OwnCheck):
    """The answer is the held-out reply: to the character, or apart from case, punctuation and white space."""

    kind: Literal["exact", "normalized"]


class RegexCheck(_OwnCheck):
    """A pattern is found in the answer."""

    kind: Literal["regex"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return pattern


class ChoiceCheck(_OwnCheck):
    """The answer names the label that the held-out reply names, and no other."""

    kind: Literal["choice"]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` of a JSON Schema."""
    if isinstance(schema, dict):
        if isinstance(ref := schema.get("$ref"), str):
            yield ref
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


class JsonCheck(_OwnCheck):
    """The answer is a JSON object with these fields, or valid against a JSON Schema."""

    kind: Literal["json"]
    fields: dict[str, Literal["string", "number", "integer", "boolean", "array", "object", "null"]] = {}
    equal: tuple[str, ...] = ()  # fields whose values must be the held-out reply's
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}  # JSON Schema, draft 2020-12

    @field_validator("schema_")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"{error.json_path} is no JSON Schema ({error.message})") from None
        try:
            for ref in _references(schema):
                Registry().resolver_with_root(DRAFT202012.create_resource(schema)).lookup(ref)
        except Unresolvable as error:
            raise ValueError(f"$ref {error.ref!r} is not in the schema; nothing is downloaded") from None
        return schema


class ToolCallCheck(_OwnCheck):
    """The answer calls the tools of the held-out reply, with its arguments."""

    kind: Literal["tool_call"]


class PythonCheck(_OwnCheck):
    """The answer's code parses as Python; nothing runs."""

    kind: Literal["python"]


class CommandCheck(_OwnCheck):
    """A command accepts the answer's code: it runs in a temporary folder with the code as answer.py."""

    kind: Literal["command"]
    command: Annotated[tuple[str, ...], Field(min_length=1)]  # words, no shell; `python` is this Python
    seconds: Positive = 5.0  # of time, and of processor time
    memory_mib: Count = 512


OwnCheck = Annotated[
    TextCheck | RegexCheck | ChoiceCheck | JsonCheck | ToolCallCheck | PythonCheck | CommandCheck,
    Field(discriminator="kind"),
]


class EvaluationParams(_Section):
    """Which rows every model is scored on, which difference in loss counts as none, and checks beyond loss."""

    test_of: str
    margin: Positive  # nats per token: smaller differences in loss count as none
    checks: dict[str, OwnCheck] = {}  # by source: what a right answer to its test rows is


class ExportParams(_Section):
    """Which published adapters become model files for other programs, and in which formats."""

    variants: tuple[str, ...]
    formats: tuple[ExportFormat, ...]


class Variant(_Section):
    """One way to fine-tune: the rows it draws from each source, and its recipe."""

    mix: Annotated[dict[str, Count], Field(min_length=1)]  # rows per source, before rows_scale
    train: dict[str, Any]
    lora: dict[str, Any] = {}  # overrides `lora`
    replicates: Count | None = None  # overrides the profile's


class Profile(_Section):
    """What the study runs on: model, sources and the values that this size of machine needs."""

    model: ModelOrigin
    sources: Annotated[dict[str, SourceOrigin], Field(min_length=1)]
    general: SourceOrigin  # text that no variant trains on, by which forgetting is measured
    data: DataParams
    split: SplitParams
    replicates: Count  # trainings of each variant that differ in the training seed alone
    train: dict[str, Any]
    eval: EvalParams


class Params(_Section):
    """All of params.yaml. Use the properties for what the active profile decides."""

    profile: str
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)]
    sources: Annotated[dict[str, SourceParams], Field(min_length=1)]
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    train: dict[str, Any]
    lora: LoraParams
    format: FormatParams
    split: ContaminationParams
    evaluation: EvaluationParams
    export: ExportParams
    profiles: Annotated[dict[str, Profile], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        for kind, names in (
            ("sources", self.sources),
            ("variants", self.variants),
            ("profiles", self.profiles),
        ):
            for name in names:
                if not KEY.fullmatch(name):
                    raise ValueError(f"{kind}.{name}: a name may hold letters, digits, '_' and '-' only")
        if BASE in self.variants:
            raise ValueError(f"variants.{BASE}: this name means the untuned model; choose another")
        for kind, names, taken in (
            ("sources", self.sources, SOURCE_KEYS),
            ("variants", self.variants, VARIANT_KEYS),
        ):
            for name in taken:
                if name in names:
                    raise ValueError(
                        f"{kind}.{name}: this name has a meaning in metrics/summary.json; choose another"
                    )
        if self.profile not in self.profiles:
            raise ValueError(f"profile: {self.profile!r} is not one of profiles ({', '.join(self.profiles)})")
        if self.evaluation.test_of not in self.variants:
            raise ValueError(
                f"evaluation.test_of: {self.evaluation.test_of!r} is not one of variants ({', '.join(self.variants)})"
            )
        covered = self.variants[self.evaluation.test_of].mix
        for name in self.evaluation.checks:
            if name not in covered:
                raise ValueError(
                    f"evaluation.checks.{name}: the test rows are those of mix {self.evaluation.test_of}, which has"
                    f" {', '.join(covered)} only; add {name} to variants.{self.evaluation.test_of}.mix, or set"
                    " evaluation.test_of to a variant whose mix has it"
                )
        for name in self.export.variants:
            if name not in self.variants:
                raise ValueError(
                    f"export.variants: {name!r} is not one of variants ({', '.join(self.variants)})"
                )
        for name, variant in self.variants.items():
            for source in variant.mix:
                if source not in self.sources:
                    raise ValueError(
                        f"variants.{name}.mix.{source}: no such source; sources has {', '.join(self.sources)}"
                    )
        for name, profile in self.profiles.items():
            if missing := sorted(set(self.sources) ^ set(profile.sources)):
                raise ValueError(
                    f"profiles.{name}.sources: must name the same sources as `sources`; differs in {', '.join(missing)}"
                )
        return self

    @property
    def active(self) -> Profile:
        """The profile that `profile` names."""
        return self.profiles[self.profile]

    def train_of(self, variant: str, profile: str | None = None) -> TrainParams:
        """The variant's recipe: `train`, overridden by the variant's, overridden by the profile's."""
        name = profile or self.profile
        layers = (
            ("train", self.train),
            (f"variants.{variant}.train", self.variants[variant].train),
            (f"profiles.{name}.train", self.profiles[name].train),
        )
        try:
            return TrainParams.model_validate(_merged(layers))
        except ValidationError as error:
            raise UserError(_explain(error, PARAMS_FILE, layers)) from None

    def lora_of(self, variant: str) -> LoraParams:
        """The variant's adapter: `lora`, overridden by the variant's."""
        layers = (
            ("lora", self.lora.model_dump()),
            (f"variants.{variant}.lora", self.variants[variant].lora),
        )
        try:
            return LoraParams.model_validate(_merged(layers))
        except ValidationError as error:
            raise UserError(_explain(error, PARAMS_FILE, layers)) from None

    def replicates_of(self, variant: str) -> int:
        """How often the variant is trained, each time with another training seed."""
        return self.variants[variant].replicates or self.active.replicates

    def seed_of(self, replicate: int) -> int:
        """The training seed of a replicate, counted from 1: first weights and order of the rows follow from it.

        The first is `seed` itself, so that one replicate of several equals a run with a single one. The same replicate
        of two variants has the same seed, by which their difference loses what both owe to it.
        """
        if replicate == 1:
            return self.seed
        return int(np.random.SeedSequence([self.seed, replicate]).generate_state(1)[0])

    def require_variant(self, variant: str) -> Variant:
        """Return the variant.

        Raises:
            UserError: params.yaml has no such variant.
        """
        if variant not in self.variants:
            raise UserError(f"{PARAMS_FILE}: no variant {variant!r}; variants has {', '.join(self.variants)}")
        return self.variants[variant]


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing, or has an impossible value;
            the message names the file and the key.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings; `git checkout {path}` restores the last committed ones")
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from None
    for profile in params.profiles:
        for variant in params.variants:
            params.train_of(variant, profile)
    for variant in params.variants:
        params.lora_of(variant)
    return params


Layers = tuple[tuple[str, dict[str, Any]], ...]
# Below these places pydantic's location names the kind of section (hub, json, ...), which no key in the file does.
TAGGED = ("profiles.*.model", "profiles.*.general", "profiles.*.sources.*", "evaluation.checks.*")
# Last in a location where a value may be of several types, the one that was tried.
TRIED_TYPE = re.compile(r"(literal|tuple|constrained-tuple)\[.*\]|str|int|bool", re.DOTALL)
LENGTHS = ("max_steps", "num_train_epochs")  # of which a layer that sets one overrides both


def _merged(layers: Layers) -> dict[str, Any]:
    """The layers as one, a later one overriding an earlier one."""
    merged: dict[str, Any] = {}
    for _, layer in layers:
        if any(layer.get(name) is not None for name in LENGTHS):
            merged = {key: value for key, value in merged.items() if key not in LENGTHS}
        merged |= layer
    return merged


def _explain(error: ValidationError, path: Path, layers: Layers = ()) -> str:
    """One line per problem: the key as written in the file, what is wrong, what is allowed."""
    lines = []
    for problem in error.errors():
        location = _written(problem)
        key = ".".join(location)
        if layers and location:
            # The layer that wins is the one to mend; a key that no layer has belongs to the variant.
            holders = [prefix for prefix, layer in layers if location[0] in layer]
            key = f"{holders[-1] if holders else layers[1][0]}.{key}"
        elif layers:
            key = layers[1][0]
        lines.append(f"{path}: {key + ': ' if key else ''}{_reason(problem)}")
    return "\n       ".join(lines)


def _written(problem: Any) -> list[str]:
    """A problem's location in keys as the file has them."""
    parts = [str(part) for part in problem["loc"]]
    for pattern in TAGGED:
        place = pattern.split(".")
        if len(parts) > len(place) and all(a in ("*", b) for a, b in zip(place, parts, strict=False)):
            del parts[len(place)]
    if parts and problem["type"].endswith(("_type", "literal_error")) and TRIED_TYPE.fullmatch(parts[-1]):
        del parts[-1]
    return parts


def _reason(problem: Any) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return "unknown key; check its spelling, or remove it"
    if kind == "missing":
        return "missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "string_pattern_mismatch" and "{40}" in str(problem.get("ctx", {}).get("pattern", "")):
        return f"{given!r} is not a full commit hash (40 hex digits); branches and tags move, so they are refused"
    return f"{message[0].lower()}{message[1:]}, got {given!r}"
