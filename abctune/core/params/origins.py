"""Where models and data come from: each origin knows what pins its bytes and which license they have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from abctune.core.params.section import (
    ChatTemplate,
    Package,
    Section,
    Sha256,
    TemplateArguments,
    Version,
    below,
)
from abctune.core.suffixes import SUFFIX_LIST, is_unreadable


class _Model(Section):
    """What every model has, wherever it comes from."""

    license: str
    chat_template: ChatTemplate = "model"
    template_args: TemplateArguments = {}  # as `enable_thinking: false`, which Qwen3's template knows

    @field_validator("chat_template")
    @classmethod
    def _template_inside_own(cls, chat_template: str) -> str:
        return chat_template if "/" not in chat_template else below(chat_template, ("models", "own"))

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


class HubSource(Section):
    """Data of a dataset repository on a Hugging Face hub, at one commit: by files, or by config and split."""

    origin: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: tuple[str, ...] = ()  # names or globs, as data/train-*.parquet
    config: str | None = None  # as the repository's README names it; needs `split`
    split: str | None = None  # as `datasets` would load it: train, test, ...
    license: str
    group_by: str | None = None  # a column whose equal values must stay in one subset of the split
    first_rows: Annotated[int, Field(ge=1)] | None = (
        None  # no row after these is read, no file after them downloaded
    )

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


class WheelSource(Section):
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
        return below(path, ("models", "own"))

    @property
    def exactly(self) -> str:
        """A folder has no version of its own; its hash is in source.json."""
        return "a model of our own"


class LocalSource(Section):
    """Data files of the user's own, under data/own/ so that DVC sees them change."""

    origin: Literal["local"]
    path: (
        str | Annotated[tuple[str, ...], Field(min_length=1)]
    )  # a file, a folder, a glob, or several of them
    split: str | None = None  # of a folder that holds several; train, if none is named
    license: str = "own data"
    group_by: str | None = None  # a column whose equal values must stay in one subset of the split

    @field_validator("path")
    @classmethod
    def _inside_own(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (path,) if isinstance(path, str) else path:
            below(one, ("data", "own"))
            if is_unreadable(one):  # of all other names that are no data file's, fetch tells
                raise ValueError(f"{one!r} must end in {SUFFIX_LIST}, or be a folder")
        return path

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


ModelOrigin = Annotated[HubModel | WheelModel | LocalModel, Field(discriminator="origin")]
SourceOrigin = Annotated[HubSource | WheelSource | LocalSource, Field(discriminator="origin")]
