"""What is done to rows before training: reading, cutting, splitting, and refusing copies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from abctune.core.params.section import Fraction, Positive, Section

# The parts of a row that `columns` can map a column to.
Part = Literal["messages", "system", "user", "context", "reasoning", "assistant", "history", "tools"]


class SourceParams(Section):
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


class DataParams(Section):
    """How much data the profile takes, and how long a conversation may be."""

    max_length: Annotated[int, Field(ge=8, strict=True)]  # tokens; longer conversations are cut
    rows_scale: Positive  # multiplies every variant's rows per source


class SplitParams(Section):
    """Shares of the hash space that are held out for validation and test; the rest is for training."""

    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitParams:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test = {self.val + self.test:g} leaves nothing to train on; keep it below 1"
            )
        return self


class ContaminationParams(Section):
    """When a training row counts as a copy of a held-out one."""

    near: Annotated[float, Field(gt=0, le=1)]  # Jaccard similarity of 5-grams
    common: Annotated[
        float, Field(gt=0, le=1)
    ]  # n-grams of more than this share of the held-out rows are not a sign of it


class FormatParams(Section):
    """Limits of the format stage."""

    max_quarantined: Annotated[float, Field(ge=0, le=1)]
