"""People's votes as the report reads them; `python -m tools.votes` writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ConfigDict, Field, JsonValue

from abctune.core.records import Record, TrainingRecord, read_records

VOTES = Path("data/votes/votes.jsonl")


class AskedTurn(Record):
    """A prompt, and each model's answer in the order of the vote's models."""

    prompt: str
    answers: tuple[str, ...]


class CastVote(Record):
    """A line of the chat's app/local/votes.jsonl. Lines of earlier versions have further fields, which are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    time: str = ""  # ISO 8601, UTC
    models: tuple[str, ...]  # in the order in which their answers stood
    adapters: dict[str, str | None] = Field(
        default_factory=dict
    )  # SHA-256 of the weights by model; None: base
    system: str = ""
    turns: tuple[AskedTurn, ...] = ()
    sampling: dict[str, JsonValue] = Field(default_factory=dict)
    preferred: str | None  # None: a tie
    blind: bool = False


class VoteRecord(Record):
    """A line of data/votes/votes.jsonl: one blind vote, without prompt and answers."""

    id: str  # from the vote's whole content, so that a vote is added once
    shown: tuple[str, ...]
    preferred: str | None  # None: a tie
    trained: dict[str, str]  # by variant: `training_id` of the adapter that answered


def training_id(record: TrainingRecord) -> str:
    """Identifies one training of a variant: times and losses are in its record, so no other has the same."""
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:16]


def read_votes() -> list[VoteRecord]:
    """The votes that were added to the project; none where there is no such file.

    Raises:
        UserError: a line is not a vote.
    """
    return read_records(VOTES, VoteRecord, "plot") if VOTES.exists() else []
