"""All of params.yaml as one object: the study's variants and the profiles that it can run in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from abctune.core.errors import UserError
from abctune.core.params.data import ContaminationParams, DataParams, FormatParams, SourceParams, SplitParams
from abctune.core.params.evaluation import EvalParams, EvaluationParams
from abctune.core.params.layers import Layers, merged
from abctune.core.params.messages import explain
from abctune.core.params.origins import ModelOrigin, SourceOrigin
from abctune.core.params.recipe import LoraParams, TrainParams
from abctune.core.params.section import (
    BASE,
    KEY,
    PARAMS_FILE,
    SOURCE_KEYS,
    VARIANT_KEYS,
    Count,
    ExportFormat,
    Section,
)

Resolved = TypeVar("Resolved", TrainParams, LoraParams)


class ExportParams(Section):
    """Which published adapters become model files for other programs, and in which formats."""

    variants: tuple[str, ...]
    formats: tuple[ExportFormat, ...]


class Variant(Section):
    """One way to fine-tune: the rows it draws from each source, and its recipe."""

    mix: Annotated[dict[str, Count], Field(min_length=1)]  # rows per source, before rows_scale
    train: dict[str, Any]
    lora: dict[str, Any] = {}  # overrides `lora`
    replicates: Count | None = None  # overrides the profile's


class Profile(Section):
    """What the study runs on: model, sources and the values that this size of machine needs."""

    model: ModelOrigin
    sources: Annotated[dict[str, SourceOrigin], Field(min_length=1)]
    general: SourceOrigin  # text that no variant trains on, by which forgetting is measured
    data: DataParams
    split: SplitParams
    replicates: Count  # trainings of each variant that differ in the training seed alone
    train: dict[str, Any]
    eval: EvalParams


class Params(Section):
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
        recipe = _resolved(TrainParams, layers)
        recipe._places.update({name: place for place, layer in layers for name in layer})
        return recipe

    def lora_of(self, variant: str) -> LoraParams:
        """The variant's adapter: `lora`, overridden by the variant's."""
        layers = (
            ("lora", self.lora.model_dump()),
            (f"variants.{variant}.lora", self.variants[variant].lora),
        )
        return _resolved(LoraParams, layers)

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


def _resolved(kind: type[Resolved], layers: Layers) -> Resolved:
    try:
        return kind.model_validate(merged(layers))
    except ValidationError as error:
        raise UserError(explain(error, PARAMS_FILE, layers)) from None


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
        raise UserError(explain(error, path)) from None
    for profile in params.profiles:
        for variant in params.variants:
            params.train_of(variant, profile)
    for variant in params.variants:
        params.lora_of(variant)
    return params
